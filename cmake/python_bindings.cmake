# SPDX-License-Identifier: Apache-2.0
# The Python package's three shared objects: libsparsekern, _core (pybind11) and
# libsparsekern_torch (operators on libtorch's stable ABI), and where it can be built
# libsparsekern_cuda. They lie in one folder and find each other there.

if(APPLE)
  set(own_folder "@loader_path")
else()
  set(own_folder "$ORIGIN")
endif()
set(CMAKE_INSTALL_RPATH "${own_folder}")

# --- _core ---------------------------------------------------------------------------------------
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
  OUTPUT_VARIABLE pybind11_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 CONFIG REQUIRED)

file(GLOB register_sources CONFIGURE_DEPENDS bind/register_*.cc)
pybind11_add_module(_core MODULE bind/module.cc ${register_sources})
target_include_directories(_core PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(_core PRIVATE sparsekern sparsekern_options)

# --- libsparsekern_torch -------------------------------------------------------------------------
# The folder of torch, without importing it.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

# The target links the C functions of torch's stable ABI only, so it depends on no version of Python
# and on no version of torch but the oldest: 2.10.
add_library(sparsekern_torch_abi INTERFACE)
target_include_directories(sparsekern_torch_abi SYSTEM INTERFACE "${torch_dir}/include")
target_include_directories(sparsekern_torch_abi INTERFACE ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_definitions(sparsekern_torch_abi INTERFACE
  TORCH_TARGET_VERSION=0x020A000000000000ULL)
target_link_libraries(sparsekern_torch_abi INTERFACE
  "${torch_dir}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}torch_cpu${CMAKE_SHARED_LIBRARY_SUFFIX}")

# No path to torch is stored: Python has loaded torch before, and the loader matches it by name.
function(sk_operator_library target)
  target_link_libraries(${target} PRIVATE sparsekern sparsekern_torch_abi sparsekern_options)
  set_target_properties(${target} PROPERTIES
    CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
    BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${own_folder}" INSTALL_REMOVE_ENVIRONMENT_RPATH ON)
  install(TARGETS ${target} LIBRARY DESTINATION sparsekern COMPONENT python)
endfunction()

file(GLOB torch_sources CONFIGURE_DEPENDS bind/torch_*.cc)
add_library(sparsekern_torch SHARED ${torch_sources})
sk_operator_library(sparsekern_torch)

install(TARGETS sparsekern _core LIBRARY DESTINATION sparsekern COMPONENT python)

include(cuda)
