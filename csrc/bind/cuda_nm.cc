// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.nm_linear for CUDA: the plan; the work is in ops/nm_linear.
#include "ops/nm_linear/cuda_nm.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

#include "bind/cuda_linear.h"

namespace sparsekern::bind {
namespace {

constexpr const char* kOp = "nm_linear";

// With wgmma unless the environment variable, read at each call, forbids it: to compare with the
// kernels that other devices take.
cuda::DeviceLimits Limits(const CudaLinear& call) {
  const char* given = std::getenv("SPARSEKERN_CUDA_WGMMA");
  const std::string value = given == nullptr || *given == '\0' ? "1" : given;
  if (value != "0" && value != "1") {
    Fail(Status::InvalidValue("nm_linear: SPARSEKERN_CUDA_WGMMA must be 0 or 1, got " + value));
  }
  cuda::DeviceLimits limits = call.Limits();
  limits.wgmma = value == "1" && call.Wgmma();
  return limits;
}

Tensor NmLinearCuda(const Tensor& x, const Tensor& values, const Tensor& structure,
                    const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows,
                    int64_t activation) {
  cuda::NmCudaArgs a = {};
  CudaLinear call(kOp, x, values, structure, scale, bias, rows, activation, &a);
  const cuda::LinearProblem& p = a.problem;
  if (rows >= 1 && p.cols >= 1) a.plan = cuda::PlanNmLinear(p, Limits(call));
  if (!a.plan.possible) call.FailSizes("an N:M");
  const bool tiles =
      a.plan.kernel != cuda::NmKernel::kDecode && a.plan.kernel != cuda::NmKernel::kFma;
  const bool decode = a.plan.kernel == cuda::NmKernel::kDecode;
  Tensor y = call.Prepare(x, values, structure, tiles ? 8 : 1, decode ? a.plan.parts : 0);
  if (p.x_rows != 0) CheckLaunch(kOp, cuda::NmLinear(a, call.Stream()));
  return y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("nm_linear", TORCH_BOX(&sparsekern::bind::NmLinearCuda));
}
