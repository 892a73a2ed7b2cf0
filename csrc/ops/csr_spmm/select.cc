// SPDX-License-Identifier: Apache-2.0
#include "ops/csr_spmm/drivers.h"

namespace sparsekern {
namespace {

std::string KernelName(const char* op, const CsrMatrix& w, const char* kind, const char* isa_name) {
  return std::string(op) + "_r" + std::to_string(w.structure.block_rows) + "_" +
         ShortName(w.dtype) + "_" + kind + "__" + isa_name;
}

std::string BatchName(const char* op, const CsrMatrix& w, IsaMask mask, bool int8_x) {
  const BatchMode mode(mask, w, int8_x);
  if (mode.dot != nullptr) return KernelName(op, w, "dot", mode.dot->isa_name);
  return KernelName(op, w, "batch", mode.kernels.tiles.isa_name);
}

}  // namespace

const CsrKernels& SelectCsrKernels(IsaMask mask) {
#define SPARSEKERN_CSR_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kCsrKernels_##isa_suffix;
#include "ops/csr_spmm/kernels.inc"
#undef SPARSEKERN_CSR_KERNELS
  return kCsrKernels_scalar;
}

const CsrInt8Kernels* SelectCsrInt8Kernels(IsaMask mask) {
#define SPARSEKERN_CSR_INT8_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return &kCsrInt8Kernels_##isa_suffix;
#include "ops/csr_spmm/int8_kernels.inc"
#undef SPARSEKERN_CSR_INT8_KERNELS
  static_cast<void>(mask);
  return nullptr;
}

bool UsesDecode(const CsrKernels& kernels, int64_t x_rows) {
  return x_rows <= kernels.max_decode_rows;
}

std::string CsrLinearKernelName(const CsrMatrix& w, int64_t x_rows, IsaMask mask, bool int8_x) {
  const CsrKernels& kernels = SelectCsrKernels(mask);
  if (UsesDecode(kernels, x_rows))
    return KernelName("csr_linear", w, "decode", kernels.tiles.isa_name);
  return BatchName("csr_linear", w, mask, int8_x);
}

std::string CsrConv2dKernelName(const CsrMatrix& w, IsaMask mask, bool int8_x) {
  return BatchName("csr_conv2d", w, mask, int8_x);
}

}  // namespace sparsekern
