# SPDX-License-Identifier: Apache-2.0
# `cmake --install`: the library, its headers and what find_package(sparsekern) reads.
include(CMakePackageConfigHelpers)

install(TARGETS sparsekern EXPORT sparsekern
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT dev)
install(DIRECTORY include/sparsekern DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT dev)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/sparsekern)
install(EXPORT sparsekern NAMESPACE sparsekern:: DESTINATION ${package_dir} COMPONENT dev
  FILE sparsekernTargets.cmake)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/sparsekernConfig.cmake.in
  ${PROJECT_BINARY_DIR}/sparsekernConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/sparsekernConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/sparsekernConfig.cmake
              ${PROJECT_BINARY_DIR}/sparsekernConfigVersion.cmake
  DESTINATION ${package_dir} COMPONENT dev)
