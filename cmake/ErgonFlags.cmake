# Flags that Ergon's own sources are compiled with; none of them reaches a project that uses the library.
add_library(ergon_flags INTERFACE)

# The C++ compiler's, also where it compiles the host half of a .cu file for nvcc.
function(ergon_flag)
  foreach(flag ${ARGN})
    target_compile_options(ergon_flags INTERFACE
      $<$<COMPILE_LANGUAGE:CXX>:${flag}> $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${flag}>)
  endforeach()
endfunction()

# Loops with sqrt, comparisons and selects vectorise only without errno and trap semantics. NaN and infinity
# keep their meaning: -ffast-math is not used.
# A sum keeps its order unless "omp simd reduction" frees it, with or without OpenMP's threads.
ergon_flag(-Wall -Wextra -Wshadow -Werror -fno-math-errno -fno-trapping-math -fopenmp-simd)
target_compile_options(ergon_flags INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # False alarms of GCC 12 in {fmt} and std::string once they are inlined.
  ergon_flag(-Wno-stringop-overflow -Wno-restrict)
endif()
if(ERGON_NATIVE AND NOT ERGON_FUZZ)
  target_compile_options(ergon_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()
if(NOT CMAKE_BUILD_TYPE STREQUAL "Release")
  target_compile_definitions(ergon_flags INTERFACE ERGON_DEBUG_CHECKS)
endif()
if(ERGON_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()
