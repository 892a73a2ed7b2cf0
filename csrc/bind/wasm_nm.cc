// SPDX-License-Identifier: Apache-2.0
// The C functions that the WebAssembly module exports for the format nm; the rules are those of
// wasm_api.cc.
#include <cstdint>
#include <string>

#include "bind/wasm_api.h"
#include "sparsekern/isa.h"
#include "sparsekern/nm.h"
#include "sparsekern/nm_linear.h"

using sparsekern::NmMatrix;
using sparsekern::NmPacker;
using sparsekern::Status;
using namespace sparsekern::wasm;

// ---- a packed matrix ---------------------------------------------------------------------------

// Checks everything docs/formats.md demands, as of untrusted input. scale: [rows] for int8, else
// null.
SPARSEKERN_EXPORT(sk_nm_new)
NmMatrix* sk_nm_new(const void* structure, uint32_t structure_bytes, const void* values,
                    uint32_t value_count, uint32_t dtype, const float* scale,
                    uint32_t scale_count) {
  return NewMatrix("nm", sparsekern::ValidateNm, sparsekern::ParseNmStructure, structure,
                   structure_bytes, values, value_count, dtype, scale, scale_count);
}
SPARSEKERN_EXPORT(sk_nm_delete) void sk_nm_delete(NmMatrix* matrix) { delete matrix; }

SPARSEKERN_EXPORT(sk_nm_rows) uint32_t sk_nm_rows(const NmMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.rows);
}
SPARSEKERN_EXPORT(sk_nm_cols) uint32_t sk_nm_cols(const NmMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.cols);
}
// n of every m columns are kept.
SPARSEKERN_EXPORT(sk_nm_n) uint32_t sk_nm_n(const NmMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.n);
}
SPARSEKERN_EXPORT(sk_nm_m) uint32_t sk_nm_m(const NmMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.m);
}
// dense: rows x cols elements of the matrix's dtype (int8: without the scale).
SPARSEKERN_EXPORT(sk_nm_unpack) void sk_nm_unpack(const NmMatrix* matrix, void* dense) {
  sparsekern::UnpackNm(matrix->structure, matrix->values, matrix->dtype, dense);
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
SPARSEKERN_EXPORT(sk_nm_packer_value_count)
uint32_t sk_nm_packer_value_count(const NmPacker* packer) {
  return static_cast<uint32_t>(packer->value_count());
}
SPARSEKERN_EXPORT(sk_nm_packer_structure_bytes)
uint32_t sk_nm_packer_structure_bytes(const NmPacker* packer) {
  return static_cast<uint32_t>(packer->structure_bytes());
}
SPARSEKERN_EXPORT(sk_nm_packer_fill)
void sk_nm_packer_fill(const NmPacker* packer, void* values, void* structure) {
  packer->Fill(values, structure);
}
SPARSEKERN_EXPORT(sk_nm_packer_delete) void sk_nm_packer_delete(NmPacker* packer) { delete packer; }

// ---- products ----------------------------------------------------------------------------------

// As sk_csr_linear.
SPARSEKERN_EXPORT(sk_nm_linear)
int32_t sk_nm_linear(const NmMatrix* matrix, const void* x, void* y, uint32_t dtype,
                     uint32_t x_rows, uint32_t x_stride, uint32_t y_stride, const float* bias,
                     uint32_t activation) {
  if (const Status status = CheckDType("nm_linear", dtype); !status.ok()) return Report(status);
  const sparsekern::LinearArgs args =
      LinearArgsOf(x, y, dtype, x_rows, x_stride, y_stride, bias, activation);
  return Report(sparsekern::NmLinear(*matrix, args, sparsekern::Serial()));
}

// Valid until the next call that answers a name.
SPARSEKERN_EXPORT(sk_nm_linear_kernel)
const char* sk_nm_linear_kernel(const NmMatrix* matrix, uint32_t x_rows) {
  return Keep(sparsekern::NmLinearKernelName(*matrix, x_rows, sparsekern::DetectedIsa()));
}
