// SPDX-License-Identifier: Apache-2.0
#include "ops/csr_spmm/drivers.h"

namespace sparsekern {
namespace {

const char* ShortName(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "f16";
    case DType::kI8: return "i8";
  }
  return "unknown";
}

std::string KernelName(const char* op, const CsrMatrix& w, const char* kind,
                       const CsrKernels& kernels) {
  return std::string(op) + "_r" + std::to_string(w.structure.block_rows) + "_" +
         ShortName(w.dtype) + "_" + kind + "__" + kernels.isa_name;
}

}  // namespace

const CsrKernels& SelectCsrKernels(IsaMask mask) {
#define SPARSEKERN_CSR_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kCsrKernels_##isa_suffix;
#include "ops/csr_spmm/kernels.inc"
#undef SPARSEKERN_CSR_KERNELS
  return kCsrKernels_scalar;
}

bool UsesDecode(const CsrKernels& kernels, int64_t x_rows) {
  return x_rows <= kernels.max_decode_rows;
}

std::string CsrLinearKernelName(const CsrMatrix& w, int64_t x_rows, IsaMask mask) {
  const CsrKernels& kernels = SelectCsrKernels(mask);
  return KernelName("csr_linear", w, UsesDecode(kernels, x_rows) ? "decode" : "batch", kernels);
}

std::string CsrConv2dKernelName(const CsrMatrix& w, IsaMask mask) {
  return KernelName("csr_conv2d", w, "batch", SelectCsrKernels(mask));
}

}  // namespace sparsekern
