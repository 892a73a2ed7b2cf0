// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.bitmap_linear for CUDA: the plan; the work is in ops/bitmap_linear.
#include "ops/bitmap_linear/cuda_bitmap.h"

#include <torch/csrc/stable/library.h>

#include "bind/cuda_linear.h"

namespace sparsekern::bind {
namespace {

constexpr const char* kOp = "bitmap_linear";

Tensor BitmapLinearCuda(const Tensor& x, const Tensor& values, const Tensor& structure,
                        const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows,
                        int64_t activation) {
  cuda::BitmapCudaArgs a = {};
  CudaLinear call(kOp, x, values, structure, scale, bias, rows, activation, &a);
  a.plan = cuda::PlanBitmapLinear(a.problem, call.Limits());
  if (!a.plan.possible) call.FailSizes("a bitmap");
  const int64_t multiple = a.plan.kernel == cuda::BitmapKernel::kFma ? 1 : 8;
  Tensor y = call.Prepare(x, values, structure, multiple, a.plan.parts > 1 ? a.plan.parts : 0);
  if (a.problem.x_rows != 0) CheckLaunch(kOp, cuda::BitmapLinear(a, call.Stream()));
  return y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("bitmap_linear", TORCH_BOX(&sparsekern::bind::BitmapLinearCuda));
}
