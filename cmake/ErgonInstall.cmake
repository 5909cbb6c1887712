# find_package(Ergon) for other projects: headers under include/ergon/<layer>/, one library, one config file.
include(CMakePackageConfigHelpers)

install(TARGETS ergon ergon_flags EXPORT ErgonTargets)
foreach(layer core kernels ops optim distributed models)
  install(DIRECTORY ${layer} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ergon
          FILES_MATCHING PATTERN "*.h" PATTERN "cpu" EXCLUDE PATTERN "cuda" EXCLUDE)
endforeach()
