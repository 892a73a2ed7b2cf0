// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.gqs_linear for CUDA: the plan; the work is in ops/gqs_linear.
#include "ops/gqs_linear/cuda_gqs.h"

#include <torch/csrc/stable/library.h>

#include "bind/cuda_linear.h"
#include "bind/torch_gqs.h"

namespace sparsekern::bind {
namespace {

constexpr const char* kOp = "gqs_linear";

Tensor GqsLinearCuda(const Tensor& x, const Tensor& values, const Tensor& structure,
                     const Tensor& scale, const MaybeTensor& bias, int64_t rows, int64_t activation,
                     bool int8_activations) {
  if (int8_activations) {
    Fail(Status::InvalidValue("gqs_linear: int8_activations exist on the CPU only"));
  }
  cuda::GqsCudaArgs a = {};
  CudaLinear call(kOp, x, values, structure, std::nullopt, bias, rows, activation, &a, false);
  CheckPart(kOp, "scale", scale, x);
  const cuda::LinearProblem& p = a.problem;
  if (values.scalar_type() != ScalarType::Char) {
    Fail(Status::InvalidType("gqs_linear: values must be int8"));
  }
  a.sizes = {
      p.rows, p.cols, p.value_count, p.structure_bytes, scale.numel(), ScaleKind(kOp, scale)};
  a.plan = cuda::PlanGqsLinear(a.sizes, p.x_rows, p.x_dtype, call.Limits());
  if (!a.plan.possible) {
    Fail(Status::InvalidValue(
        "gqs_linear: values, structure and scale must have the sizes of a group-quantized matrix "
        "of rows x x.shape[-1] (" +
        std::to_string(p.rows) + " x " + std::to_string(p.cols) + "), got " +
        std::to_string(p.value_count) + ", " + std::to_string(p.structure_bytes) + " and " +
        std::to_string(a.sizes.scale_count)));
  }
  const bool decode = a.plan.kernel == cuda::GqsKernel::kDecode;
  const bool mma = a.plan.kernel == cuda::GqsKernel::kDenseMma;
  Tensor y = call.Prepare(x, values, structure, mma ? 8 : 1, decode ? 1 : 0);
  if (p.x_rows == 0) return y;
  std::optional<Tensor> carried;
  if (decode) {
    carried = torch::stable::new_empty(x, {a.plan.blocks, p.x_rows}, ScalarType::Float);
    a.carried = static_cast<float*>(carried->mutable_data_ptr());
  }
  a.group_scale = scale.const_data_ptr();
  CheckLaunch(kOp, cuda::GqsLinear(a, call.Stream()));
  return y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("gqs_linear", TORCH_BOX(&sparsekern::bind::GqsLinearCuda));
}
