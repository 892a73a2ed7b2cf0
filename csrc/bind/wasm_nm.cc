// SPDX-License-Identifier: Apache-2.0
// The C functions that the WebAssembly module exports for the format nm; the rules are those of
// wasm_api.cc.
#include <cstdint>

#include "bind/wasm_api.h"
#include "sparsekern/nm.h"
#include "sparsekern/nm_linear.h"

using sparsekern::NmMatrix;
using sparsekern::NmPacker;
using namespace sparsekern::wasm;

// ---- a packed matrix ---------------------------------------------------------------------------

SPARSEKERN_EXPORT_MATRIX(nm, Nm)

// n of every m columns are kept.
SPARSEKERN_EXPORT(sk_nm_n) uint32_t sk_nm_n(const NmMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.n);
}
SPARSEKERN_EXPORT(sk_nm_m) uint32_t sk_nm_m(const NmMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.m);
}

// ---- packing -----------------------------------------------------------------------------------

// As sk_packer_new, for n of every m columns; a group that keeps more is refused.
SPARSEKERN_EXPORT(sk_nm_packer_new)
NmPacker* sk_nm_packer_new(const void* dense, uint32_t dtype, uint32_t rows, uint32_t cols,
                           const uint8_t* mask, uint32_t n, uint32_t m) {
  return NewPacker<NmPacker>("nm_pack", dtype, [&](NmPacker* packer) {
    // 0 stands for a number that fits no int: no pattern has it.
    const auto number = [](uint32_t value) { return value <= 32 ? static_cast<int>(value) : 0; };
    return packer->Plan(dense, DTypeOf(dtype), rows, cols, number(n), number(m), mask);
  });
}
SPARSEKERN_EXPORT_PACKER(sk_nm_packer, NmPacker, value_count)
