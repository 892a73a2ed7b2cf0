// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.bitmap_linear: checks, views, allocation; the work is the core's, or, for
// batches where the processor has AMX, that of torch's dense product.
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <string>

#include "bind/torch_args.h"
#include "bind/torch_parallel.h"
#include "sparsekern/bitmap_linear.h"

namespace sparsekern::bind {
namespace {

Tensor Borrow(const void* data, int64_t rows, int64_t cols, int64_t stride) {
  return torch::stable::from_blob(const_cast<void*>(data), {rows, cols}, {stride, 1},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  ScalarType::BFloat16);
}

// x, and torch's product of it and the last block.
struct TorchProduct {
  Tensor x;
  std::optional<Tensor> out;

  Status operator()(const BitmapDenseRows& block, const void** product) {
    const Tensor weights = Borrow(block.weights, block.rows, x.size(1), block.stride);
    out = Empty({x.size(0), block.rows}, DType::kBF16);
    std::array<StableIValue, 3> stack{
        torch::stable::detail::from(x),
        torch::stable::detail::from(torch::stable::transpose(weights, 0, 1)),
        torch::stable::detail::from(*out)};
    // Into a tensor: autocast leaves that one alone.
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
    // What it answers is `out` once more.
    static_cast<void>(torch::stable::detail::to<Tensor>(stack[0]));
    *product = out->const_data_ptr();
    return Status::Ok();
  }
};

// Through torch, whose products use AMX.
Status ByTorch(const BitmapMatrix& w, const LinearArgs& args) {
  TorchProduct product{Borrow(args.x, args.x_rows, w.structure.cols, args.x_stride), {}};
  return BitmapLinearDense(w, args, BitmapDenseProduct::Of(&product), TorchParallelFor());
}

bool PrefersTorch(const BitmapMatrix& w, const LinearArgs& args) {
  IsaMask mask = 0;
  ThrowIfError(ActiveIsa(&mask));
  return BitmapPrefersDense(w, args, mask);
}

template <bool kByTorch>
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
  ThrowIfError(kByTorch || PrefersTorch(w, args) ? ByTorch(w, args)
                                                 : BitmapLinear(w, args, TorchParallelFor()));
  return call.y;
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekern, m) {
  for (const char* name : {"bitmap_linear", "_bitmap_linear_by_torch"}) {
    m.def((std::string(name) +
           "(Tensor x, Tensor values, Tensor structure, Tensor? scale, Tensor? bias, int rows, "
           "int activation=0) -> Tensor")
              .c_str());
  }
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("bitmap_linear", TORCH_BOX(&sparsekern::bind::BitmapLinearOp<false>));
  // The way that processors with AMX take, on any: for tests.
  m.impl("_bitmap_linear_by_torch", TORCH_BOX(&sparsekern::bind::BitmapLinearOp<true>));
}
