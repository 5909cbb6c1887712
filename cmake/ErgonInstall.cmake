# find_package(Ergon) for other projects: headers under include/ergon/<layer>/, one library, one config file.
include(CMakePackageConfigHelpers)

install(TARGETS ergon ergon_flags EXPORT ErgonTargets)
foreach(layer core kernels ops optim distributed models)
  install(DIRECTORY ${layer} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ergon
          FILES_MATCHING PATTERN "*.h" PATTERN "cpu" EXCLUDE PATTERN "cuda" EXCLUDE PATTERN "no_cuda" EXCLUDE)
endforeach()
install(FILES models/ergon.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ergon)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Ergon)
configure_package_config_file(cmake/ErgonConfig.cmake.in ${PROJECT_BINARY_DIR}/ErgonConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ErgonConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/ErgonConfig.cmake ${PROJECT_BINARY_DIR}/ErgonConfigVersion.cmake
        DESTINATION ${package_dir})
install(EXPORT ErgonTargets NAMESPACE Ergon:: DESTINATION ${package_dir})
