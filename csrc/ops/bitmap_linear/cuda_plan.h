// SPDX-License-Identifier: Apache-2.0
// Which CUDA kernel of bitmap_linear multiplies, and how the work is cut: host arithmetic on sizes
// alone, so that choosing waits for nothing on the device, and tests need none.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/bitmap_linear/cuda_index.h"
#include "sparsekern/dtype.h"

namespace sparsekern::cuda {

enum class BitmapKernel {
  kDecode,     // a few rows of x, limited by bytes: fp32 multiply-adds, any dtypes
  kDecodeMma,  // more rows, still limited by bytes, on tensor cores
  kDenseMma,   // expanded tile by tile for the tensor cores
  kFma,        // many rows, any dtypes, fp32 multiply-adds
};

struct BitmapPlan {
  bool possible = false;  // whether the arrays have the sizes of such a matrix
  BitmapKernel kernel = BitmapKernel::kFma;
  // Of the decode kernels:
  int rows_of_x = 0;  // of a block of threads
  int panels = 0;     // of a block
  int ranges = 0;     // warps to a panel
  int parts = 0;      // blocks to a panel
  int shared_bytes = 0;
};

constexpr int kBitmapFewRows = 4;      // of x: multiply-adds are as fast as tensor cores
constexpr int kBitmapDecodeRows = 16;  // of x: up to it kDecode where there are no tensor cores
constexpr int kBitmapMmaRows = 64;     // of x: up to it kDecodeMma
constexpr int kMmaRowsAtOnce = 16;
constexpr int kBitmapMaxWarps = 8;
constexpr int kBitmapMaxParts = 64;
constexpr int kMinRangeWords = 4;

SPARSEKERN_HOST_DEVICE int64_t BitmapChunks(const LinearProblem& p, const BitmapPlan& plan) {
  return DivideUp(p.x_rows, plan.rows_of_x);
}
inline int64_t BitmapBlocks(const LinearProblem& p, const BitmapPlan& plan) {
  return DivideUp(DivideUp(p.rows, kBitmapRows), plan.panels) * BitmapChunks(p, plan);
}

inline BitmapPlan PlanBitmapLinear(const LinearProblem& p, const DeviceLimits& device) {
  BitmapPlan plan;
  constexpr int64_t kLimit = int64_t{1} << 31;  // the format's
  if (p.rows < 1 || p.cols < 1 || p.rows >= kLimit || p.cols >= kLimit) return plan;
  const BitmapLayout s = BitmapLayoutOf(p.rows, p.cols);
  plan.possible = p.structure_bytes == s.bytes && p.value_count <= p.rows * p.cols;
  const bool half_x = p.x_dtype == DType::kBF16 || p.x_dtype == DType::kF16;
  // Values that the dtype of x holds exactly: others would be rounded once more.
  const bool tensor_cores = half_x && (p.value_dtype == p.x_dtype || p.value_dtype == DType::kI8);
  if (p.x_rows > (tensor_cores ? kBitmapMmaRows : kBitmapDecodeRows)) {
    plan.kernel = tensor_cores ? BitmapKernel::kDenseMma : BitmapKernel::kFma;
    return plan;
  }
  if (tensor_cores && p.x_rows > kBitmapFewRows) {
    plan.kernel = BitmapKernel::kDecodeMma;
    plan.rows_of_x = kMmaRowsAtOnce;
  } else {
    plan.kernel = BitmapKernel::kDecode;
    plan.rows_of_x = p.x_rows == 1 ? 1 : p.x_rows <= 4 ? 4 : 8;
  }
  // The warps of a block have its rows of x in common where they have the same words, in the
  // first-level cache: the more rows, the more panels in a block.
  plan.panels = plan.rows_of_x == 1 ? 1 : plan.rows_of_x <= 8 ? 2 : 4;
  const int warp = WarpBytes(static_cast<int>(SizeOf(p.value_dtype)),
                             static_cast<int>(SizeOf(p.x_dtype)), plan.rows_of_x);
  int warps = kBitmapMaxWarps;
  while (warps > plan.panels && warps * warp > device.shared_bytes) warps /= 2;
  plan.ranges = warps / plan.panels;
  plan.shared_bytes = warps * warp;
  // Three blocks of threads for each multiprocessor keep enough loads under way; each further part
  // counts the bits of those before it.
  const int64_t wanted =
      DivideUp(3 * int64_t{device.multiprocessors}, std::max<int64_t>(1, BitmapBlocks(p, plan)));
  const int64_t most = std::max<int64_t>(1, s.words / (int64_t{kMinRangeWords} * plan.ranges));
  plan.parts = static_cast<int>(std::min({wanted, most, int64_t{kBitmapMaxParts}}));
  return plan;
}

}  // namespace sparsekern::cuda
