# SPDX-License-Identifier: Apache-2.0
# Which kernel files an operator's folder may hold, and the flags each is compiled with. A new
# instruction set is one row here and one in csrc/base/isa.cc.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(SPARSEKERN_ARCH x86_64)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(SPARSEKERN_ARCH aarch64)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^wasm32$")
  set(SPARSEKERN_ARCH wasm32)
else()
  set(SPARSEKERN_ARCH generic)  # scalar kernels only
endif()

set(avx2 -mavx2 -mfma -mf16c -mbmi2)
# gcc 12 takes the undefined operand of its own AVX-512 intrinsics for a mistake (gcc bug 105593).
set(avx512 ${avx2} "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-uninitialized>"
  -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)

# zig's clang knows -mcpu only, and this feature by LLVM's name.
set(fp16 fp16)
if(CMAKE_CXX_COMPILER MATCHES "zig-c\\+\\+$")
  set(fp16 fullfp16)
endif()

# sk_isa(<file stem> <architecture, or any> [flags...])
set(SPARSEKERN_ISA_FILES "")
macro(sk_isa stem arch)
  if("${arch}" STREQUAL "any" OR "${arch}" STREQUAL "${SPARSEKERN_ARCH}")
    list(APPEND SPARSEKERN_ISA_FILES ${stem})
    set(SPARSEKERN_ISA_FLAGS_${stem} ${ARGN})
  endif()
endmacro()
# At -O3 gcc 12 spends a minute on unrolling loops over vectors of one lane.
sk_isa(scalar             any     "$<$<CONFIG:Release>:-O2>")
# Skylake to Cascade Lake do not keep decoded a jump that touches a boundary of 32 bytes: without
# this, where a loop happens to lie decided whether 16 rows of bitmap_linear took 8.5 or 10.8 ms.
include(CheckCXXCompilerFlag)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(branches -Wa,-mbranches-within-32B-boundaries)
else()
  set(branches -mbranches-within-32B-boundaries)
endif()
if(SPARSEKERN_ARCH STREQUAL "x86_64")
  check_cxx_compiler_flag(${branches} SPARSEKERN_HAS_BRANCH_ALIGNMENT)
  if(SPARSEKERN_HAS_BRANCH_ALIGNMENT)
    list(APPEND avx2 ${branches})
    list(APPEND avx512 ${branches})
  endif()
endif()
sk_isa(x86_avx2           x86_64  ${avx2})
sk_isa(x86_avx512         x86_64  ${avx512})
sk_isa(x86_avx512vnni     x86_64  ${avx512} -mavx512vnni)
sk_isa(x86_avx512vbmi2    x86_64  ${avx512} -mavx512vbmi2)
sk_isa(x86_avx512bf16     x86_64  ${avx512} -mavx512bf16)
sk_isa(x86_amxint8        x86_64  ${avx512} -mamx-tile -mamx-int8)
sk_isa(x86_amxbf16        x86_64  ${avx512} -mavx512bf16 -mamx-tile -mamx-bf16)
sk_isa(arm_neon           aarch64)
sk_isa(arm_neon_fp16      aarch64 -mcpu=generic+${fp16})
sk_isa(arm_neon_dotprod   aarch64 -mcpu=generic+dotprod)
if(NOT SPARSEKERN_WASM_SIMD MATCHES "^(ON|RELAXED|OFF)$")
  message(FATAL_ERROR "SPARSEKERN_WASM_SIMD must be ON, RELAXED or OFF, got ${SPARSEKERN_WASM_SIMD}")
elseif(SPARSEKERN_WASM_SIMD STREQUAL "RELAXED")
  sk_isa(wasm_simd128     wasm32  -msimd128 -mrelaxed-simd)
elseif(SPARSEKERN_WASM_SIMD)
  sk_isa(wasm_simd128     wasm32  -msimd128)
endif()

# sk_add_isa_sources(<target> <folder>): adds those kernel files of `folder` that exist and fit the
# target architecture. A kernel file "<isa>.cc" may be split: "<isa>__<part>.cc" gets the same flags.
function(sk_add_isa_sources target folder)
  foreach(stem IN LISTS SPARSEKERN_ISA_FILES)
    file(GLOB sources CONFIGURE_DEPENDS "${folder}/${stem}.cc" "${folder}/${stem}__*.cc")
    foreach(source IN LISTS sources)
      target_sources(${target} PRIVATE "${source}")
      set_source_files_properties("${source}" PROPERTIES
        COMPILE_OPTIONS "${SPARSEKERN_ISA_FLAGS_${stem}}")
    endforeach()
  endforeach()
endfunction()

# sk_add_op(<name>): wires csrc/ops/<name>/ into the core: <name>.cc (checks, selection), other
# files that belong to no instruction set, and the kernel files.
function(sk_add_op name)
  set(folder "${CMAKE_CURRENT_SOURCE_DIR}/ops/${name}")
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cc")
  foreach(source IN LISTS sources)
    get_filename_component(stem "${source}" NAME_WE)
    if(NOT stem MATCHES "^(scalar|x86|arm|wasm|cuda)(_|$)")
      target_sources(sparsekern PRIVATE "${source}")
    endif()
  endforeach()
  sk_add_isa_sources(sparsekern "${folder}")
endfunction()
