// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.bitmap_linear: checks, views, allocation; the work is the core's.
#include <torch/csrc/stable/library.h>

#include <string>

#include "bind/torch_args.h"
#include "bind/torch_parallel.h"
#include "sparsekern/bitmap_linear.h"

namespace sparsekern::bind {
namespace {

Tensor BitmapLinearOp(const Tensor& x, const Tensor& values, const Tensor& structure,
                      const MaybeTensor& scale, const MaybeTensor& bias, int64_t rows,
                      int64_t activation) {
  constexpr const char* kOp = "bitmap_linear";
  CheckCpu(kOp, "x", x);
  CheckStructure(kOp, structure);
  BitmapMatrix w;
  ThrowIfError(ParseBitmapStructure(structure.const_data_ptr(),
                                    static_cast<size_t>(structure.numel()), kOp, &w.structure));
  if (w.structure.rows != rows) {
    Fail(Status::InvalidValue("bitmap_linear: rows must equal the structure's (" +
                              std::to_string(w.structure.rows) + "), got " + std::to_string(rows)));
  }
  SetValues(kOp, values, scale, w.structure.value_count(), rows, &w);
  LinearArgs args;
  const LinearCall call(kOp, x, bias, rows, w.structure.cols, activation, &args);
  ThrowIfError(BitmapLinear(w, args, TorchParallelFor()));
  return call.y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekern, m) {
  m.def(
      "bitmap_linear(Tensor x, Tensor values, Tensor structure, Tensor? scale, Tensor? bias, int "
      "rows, int activation=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("bitmap_linear", TORCH_BOX(&sparsekern::bind::BitmapLinearOp));
}
