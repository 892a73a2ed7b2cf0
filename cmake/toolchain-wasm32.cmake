# SPDX-License-Identifier: Apache-2.0
# WebAssembly with WASI: no threads, no exceptions. One module holds one instruction set:
# -DSPARSEKERN_WASM_SIMD=OFF builds the module without simd128. Needs `pip install ziglang`, as
# toolchain-aarch64.cmake does.
set(CMAKE_SYSTEM_NAME WASI)
set(CMAKE_SYSTEM_PROCESSOR wasm32)
# CMake knows no platform file of this name before 4.x; nothing in it is needed.
list(APPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}/platform")
set(CMAKE_CXX_COMPILER "${CMAKE_CURRENT_LIST_DIR}/zig-c++")
set(CMAKE_AR "${CMAKE_CURRENT_LIST_DIR}/zig-ar")
set(CMAKE_RANLIB "${CMAKE_CURRENT_LIST_DIR}/zig-ranlib")
set(CMAKE_CXX_FLAGS_INIT "-target wasm32-wasi -fno-exceptions")
set(CMAKE_EXECUTABLE_SUFFIX ".wasm")
set(BUILD_SHARED_LIBS OFF CACHE BOOL "Build libsparsekern as a shared library")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
