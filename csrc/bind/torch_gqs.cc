// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.gqs_linear: checks, views, allocation; the work is the core's.
#include "bind/torch_gqs.h"

#include <torch/csrc/stable/library.h>

#include <string>

#include "bind/torch_parallel.h"
#include "sparsekern/gqs_linear.h"

namespace sparsekern::bind {
namespace {

Tensor GqsLinearOp(const Tensor& x, const Tensor& values, const Tensor& structure,
                   const Tensor& scale, const MaybeTensor& bias, int64_t rows, int64_t activation,
                   bool int8_activations) {
  constexpr const char* kOp = "gqs_linear";
  CheckCpu(kOp, "x", x);
  CheckStructure(kOp, structure);
  GqsMatrix w;
  ThrowIfError(ParseGqsStructure(structure.const_data_ptr(), static_cast<size_t>(structure.numel()),
                                 kOp, &w.structure));
  if (w.structure.rows != rows) {
    Fail(Status::InvalidValue("gqs_linear: rows must equal the structure's (" +
                              std::to_string(w.structure.rows) + "), got " + std::to_string(rows)));
  }
  CheckVector(kOp, "values", values, w.structure.value_bytes());
  if (values.scalar_type() != ScalarType::Char) {
    Fail(Status::InvalidType("gqs_linear: values must be int8"));
  }
  CheckVector(kOp, "scale", scale, w.structure.scale_count());
  w.kind = ScaleKind(kOp, scale);
  w.values = static_cast<const uint8_t*>(values.const_data_ptr());
  w.scale = scale.const_data_ptr();
  LinearArgs args;
  const LinearCall call(kOp, x, bias, rows, w.structure.cols, activation, &args);
  args.int8_x = int8_activations;
  ThrowIfError(GqsLinear(w, args, TorchParallelFor()));
  return call.y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekern, m) {
  m.def(
      "gqs_linear(Tensor x, Tensor values, Tensor structure, Tensor scale, Tensor? bias, int rows, "
      "int activation=0, bool int8_activations=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("gqs_linear", TORCH_BOX(&sparsekern::bind::GqsLinearOp));
}
