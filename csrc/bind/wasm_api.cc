// SPDX-License-Identifier: Apache-2.0
// The C functions that the WebAssembly module exports, for wasm/sparsekern.mjs and any other host:
// memory, errors, and the format csr. wasm_nm.cc, wasm_bitmap.cc and wasm_gqs.cc have the other
// formats; wasm_api.h has the functions that all have.
//
// Pointers are addresses in the module's memory, sizes count elements unless the name says bytes,
// dtypes and activations are the numbers of dtype.h and activation.h. A call that fails answers 0
// where it answers a pointer, else the number of its StatusCode, and leaves its message in
// sk_error(). Matrices borrow `structure`, `values` and `scale`: they must stay until
// sk_csr_delete and the like. One thread only.
#include "bind/wasm_api.h"

#include <cstdint>
#include <cstdlib>
#include <string>

#include "sparsekern/csr.h"
#include "sparsekern/csr_spmm.h"
#include "sparsekern/isa.h"
#include "sparsekern/version.h"

using sparsekern::CsrMatrix;
using sparsekern::CsrPacker;
using sparsekern::Status;
using namespace sparsekern::wasm;

SPARSEKERN_EXPORT(sk_version) const char* sk_version() { return sparsekern::Version(); }
SPARSEKERN_EXPORT(sk_error) const char* sk_error() { return LastError().c_str(); }

// The sets of instructions that the module was built with, e.g. "scalar simd128 relaxed".
SPARSEKERN_EXPORT(sk_isa) const char* sk_isa() {
  std::string names;
  for (const std::string& name : sparsekern::IsaNames(sparsekern::DetectedIsa())) {
    names += names.empty() ? name : " " + name;
  }
#if defined(SPARSEKERN_WASM_RELAXED)
  names += " relaxed";  // no kernels of its own: those of simd128, compiled for it
#endif
  return Keep(names);
}

// 64-byte aligned; null when memory cannot grow so far.
SPARSEKERN_EXPORT(sk_malloc) void* sk_malloc(uint32_t bytes) {
  if (bytes > UINT32_MAX - 64) return nullptr;
  return std::aligned_alloc(64, bytes == 0 ? 64 : (bytes + 63) / 64 * 64);
}
SPARSEKERN_EXPORT(sk_free) void sk_free(void* memory) { std::free(memory); }

// ---- a packed matrix ---------------------------------------------------------------------------

SPARSEKERN_EXPORT_MATRIX(csr, Csr)

SPARSEKERN_EXPORT(sk_csr_block_rows) uint32_t sk_csr_block_rows(const CsrMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.block_rows);
}
// Kept (group, column) pairs: times block_rows, the kept weights.
SPARSEKERN_EXPORT(sk_csr_kept) uint32_t sk_csr_kept(const CsrMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.kept);
}

// ---- packing -----------------------------------------------------------------------------------

// dense: rows x cols, row-major; mask: the same shape, nonzero = kept, or null. Both must stay as
// they are until sk_packer_fill. Ask for the sizes, allocate, fill, delete.
SPARSEKERN_EXPORT(sk_packer_new)
CsrPacker* sk_packer_new(const void* dense, uint32_t dtype, uint32_t rows, uint32_t cols,
                         const uint8_t* mask, uint32_t block_rows) {
  return NewPacker<CsrPacker>("csr_pack", dtype, [&](CsrPacker* packer) {
    const int block = block_rows <= 4 ? static_cast<int>(block_rows) : 0;
    return packer->Plan(dense, DTypeOf(dtype), rows, cols, mask, block);
  });
}
SPARSEKERN_EXPORT_PACKER(sk_packer, CsrPacker, value_count)

// ---- convolution --------------------------------------------------------------------------------

// x: [batch, cols, height, width]; y: [batch, rows, ceil(height/stride), ceil(width/stride)].
SPARSEKERN_EXPORT(sk_csr_conv2d)
int32_t sk_csr_conv2d(const CsrMatrix* matrix, const void* x, void* y, uint32_t dtype,
                      uint32_t batch, uint32_t height, uint32_t width, uint32_t stride,
                      const float* bias, uint32_t activation) {
  if (const Status status = CheckDType("csr_conv2d", dtype); !status.ok()) return Report(status);
  sparsekern::CsrConv2dArgs args;
  args.x = x;
  args.y = y;
  args.dtype = DTypeOf(dtype);
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.stride = stride;
  args.epilogue = EpilogueOf(bias, activation);
  return Report(sparsekern::CsrConv2d(*matrix, args, sparsekern::Serial()));
}

// Valid until the next call that answers a name.
SPARSEKERN_EXPORT(sk_csr_conv2d_kernel)
const char* sk_csr_conv2d_kernel(const CsrMatrix* matrix) {
  return Keep(sparsekern::CsrConv2dKernelName(*matrix, sparsekern::DetectedIsa()));
}
