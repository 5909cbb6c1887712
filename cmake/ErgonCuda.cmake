# The CUDA half: ERGON_CUDA=ON builds for GPUs, SIMULATED for the simulated GPU of tests/simgpu (kernels are embedded as
# PTX, and its library takes the place of libcudart).
if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
  set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # linked by ergon_use_cuda
if(ERGON_CUDA STREQUAL "SIMULATED")
  set(CMAKE_CUDA_ARCHITECTURES 80-virtual)
elseif(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 89-real 90-real)  # and PTX of the lowest, for GPUs to come
endif()
enable_language(CUDA)
# CMake 3.25 knows no C++20 flag of nvcc 13.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

if(ERGON_CUDA STREQUAL "SIMULATED")
  add_subdirectory(tests/simgpu)
else()
  find_package(CUDAToolkit REQUIRED)
endif()

# Lets a target contain .cu files and call the CUDA runtime.
function(ergon_use_cuda target)
  target_compile_definitions(${target} PUBLIC $<BUILD_INTERFACE:ERGON_CUDA=1>)
  target_include_directories(${target} SYSTEM PUBLIC
    $<BUILD_INTERFACE:${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}>)
  # The {fmt} of spdlog checks format strings with consteval, which nvcc's front end does not accept.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -lineinfo -DFMT_CONSTEVAL= -DFMT_USE_CONSTEXPR=1>)
  if(ERGON_CUDA STREQUAL "SIMULATED")
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-no-compress>)
    target_link_libraries(${target} PRIVATE $<LINK_ONLY:simgpu::runtime> ${CMAKE_DL_LIBS})
  else()
    # A kernel that spills registers does not compile; but for f64, which is for tests, in softmax's blocks of 1024 threads
    # and in attention with a head_dim above 128.
    get_target_property(kernels ${target} SOURCES)
    list(FILTER kernels INCLUDE REGEX "\\.cu$")
    list(FILTER kernels EXCLUDE REGEX "/(attention/simt|softmax).cu$")
    set_property(SOURCE ${kernels} APPEND PROPERTY COMPILE_OPTIONS -Xptxas=--warn-on-spills,--warning-as-error)
    target_link_libraries(${target} PRIVATE CUDA::cudart_static ${CMAKE_DL_LIBS})
  endif()
endfunction()
