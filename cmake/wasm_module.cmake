# SPDX-License-Identifier: Apache-2.0
# sparsekern-<tier>.wasm: a module without main (a WASI "reactor") that exports the functions of
# bind/wasm_*.cc and its memory. wasm/build.sh builds all tiers.

if(SPARSEKERN_WASM_SIMD STREQUAL "RELAXED")
  set(wasm_tier relaxed)
elseif(SPARSEKERN_WASM_SIMD)
  set(wasm_tier simd128)
else()
  set(wasm_tier scalar)
endif()

file(GLOB wasm_sources CONFIGURE_DEPENDS bind/wasm_*.cc)
add_executable(sparsekern_wasm ${wasm_sources})
target_include_directories(sparsekern_wasm PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_link_libraries(sparsekern_wasm PRIVATE sparsekern sparsekern_options)
target_link_options(sparsekern_wasm PRIVATE -mexec-model=reactor -Wl,--strip-all -Wl,--gc-sections
  -Wl,-z,stack-size=1048576)
set_target_properties(sparsekern_wasm PROPERTIES OUTPUT_NAME "sparsekern-${wasm_tier}" SUFFIX ".wasm")
