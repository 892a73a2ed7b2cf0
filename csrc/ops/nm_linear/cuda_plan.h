// SPDX-License-Identifier: Apache-2.0
// Which CUDA kernel multiplies, and how the work is cut: host arithmetic on sizes alone, so that
// choosing waits for nothing on the device, and tests need none.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/nm_linear/cuda_index.h"
#include "sparsekern/dtype.h"

namespace sparsekern::cuda {

enum class NmKernel {
  kDecode,       // a few rows of x, limited by bytes: any pattern, any dtypes
  kSparseMma,    // 2:4 and 1:2 on sparse tensor cores
  kSparseWgmma,  // the same by Hopper's own instruction
  kDenseMma,     // any pattern, expanded tile by tile for the dense tensor cores
  kFma,          // any pattern, any dtypes, fp32 multiply-adds
};

struct NmPlan {
  bool possible = false;  // whether any pattern has arrays of these sizes
  NmKernel kernel = NmKernel::kFma;
  int window = 0, steps_per_window = 0;  // 0: several patterns have arrays of these sizes
  int rows_of_x = 0;                     // of a block of threads
  int features = 0;                      // rows of W of a block of threads
  int parts = 1;                         // kDecode: ways that the columns are split
};

constexpr int kNmDecodeMaxRows = 16;    // of x
constexpr int kNmDecodeRowsAtOnce = 8;  // of x, in registers
constexpr int kNmMaxParts = 64;

// Shared memory of a stage with a tile of features x rows_of_x: values, words, x.
SPARSEKERN_HOST_DEVICE constexpr int SparseWordsAt(int features) {
  return features / kNmPanelRows * kPanelTileBytes;
}
SPARSEKERN_HOST_DEVICE constexpr int SparseXAt(int features) {
  return SparseWordsAt(features) + features / kNmPanelRows * 2 * kNmPanelRows * 4;
}
SPARSEKERN_HOST_DEVICE constexpr int SparseStageBytes(int features, int rows_of_x) {
  return SparseXAt(features) + rows_of_x * kTileCols * 2;
}
// Of a block: the stages, and afterwards the result in fp32.
constexpr int SparseSharedBytes(int features, int rows_of_x, int stages) {
  return std::max(stages * SparseStageBytes(features, rows_of_x),
                  rows_of_x * ResultStride(features) * 4);
}
constexpr int kSparseStages = 4;
// wgmma's products of one tile run while those of the next begin: two stages are in use, the one
// after a tile's own is the next tile's, and the one that its copies may fill is that of the tile
// two before.
constexpr int kWgmmaStages = 6;
SPARSEKERN_HOST_DEVICE constexpr int WgmmaNextStage(int stage) {
  return stage + 1 == kWgmmaStages ? 0 : stage + 1;
}
SPARSEKERN_HOST_DEVICE constexpr int WgmmaFreeStage(int stage) {
  return stage < 2 ? stage + kWgmmaStages - 2 : stage - 2;
}

// A larger tile reads less of both operands, a smaller one fills a device that has more
// multiprocessors than there are large tiles.
constexpr TileSize kSparseTiles[] = {{256, 128}, {128, 64}};
// Of x, for wgmma: fewer are limited by the bytes of W, and mma.sp is as good.
constexpr int kWgmmaMinRows = 65;

// The window and the steps in it from the sizes of the arrays: 0 where several windows fit, which
// only matrices of up to eight kept weights a row allow; false where none does.
inline bool InferNmPattern(const LinearProblem& p, int* window, int* steps_per_window) {
  const int64_t panels = DivideUp(p.rows, kNmPanelRows);
  const int64_t steps = p.value_count / (panels * kNmPanelRows);
  int found = 0;
  for (const int w : {4, 16, 32}) {
    const int64_t windows = DivideUp(p.cols, w);
    const int64_t per_window = steps / windows;
    if (per_window < 1 || per_window >= w) continue;
    const NmLayout s = NmLayoutOf(p.rows, p.cols, w, static_cast<int>(per_window),
                                  p.structure_bytes, p.value_count);
    if (!s.consistent) continue;
    ++found;
    *window = w;
    *steps_per_window = static_cast<int>(per_window);
  }
  if (found > 1) *window = *steps_per_window = 0;
  return found > 0;
}

inline NmPlan PlanNmLinear(const LinearProblem& p, const DeviceLimits& device) {
  NmPlan plan;
  plan.possible = InferNmPattern(p, &plan.window, &plan.steps_per_window);
  const auto use = [&plan](NmKernel kernel, TileSize tile) {
    plan.kernel = kernel;
    plan.features = tile.features;
    plan.rows_of_x = tile.rows_of_x;
  };
  if (plan.window != 0 && p.x_rows <= kNmDecodeMaxRows) {
    const int rows_of_x = p.x_rows == 1 ? 1 : p.x_rows == 2 ? 2 : p.x_rows <= 4 ? 4 : 8;
    use(NmKernel::kDecode, {kDecodeWarps * kNmPanelRows, rows_of_x});
    // Four blocks of threads for each multiprocessor keep enough loads under way; more parts mean
    // more sums to add up.
    const int64_t blocks =
        std::max<int64_t>(1, CountTiles(p, {plan.features, plan.rows_of_x}));  // x may be empty
    const int64_t wanted = DivideUp(4 * int64_t{device.multiprocessors}, blocks);
    const int64_t most = DivideUp(p.cols, 2 * kDecodeSplitCols);
    plan.parts = static_cast<int>(std::min({wanted, most, int64_t{kNmMaxParts}}));
    return plan;
  }
  const bool half_x = p.x_dtype == DType::kBF16 || p.x_dtype == DType::kF16;
  if (half_x && p.value_dtype == p.x_dtype && plan.window == 4 && plan.steps_per_window == 2) {
    const bool wgmma = device.wgmma && p.x_rows >= kWgmmaMinRows;
    const int stages = wgmma ? kWgmmaStages : kSparseStages;
    for (const TileSize tile : kSparseTiles) {
      const bool last = tile.features == kSparseTiles[1].features;
      const bool fits =
          SparseSharedBytes(tile.features, tile.rows_of_x, stages) <= device.shared_bytes;
      if (fits && (last || CountTiles(p, tile) >= device.multiprocessors)) {
        use(wgmma ? NmKernel::kSparseWgmma : NmKernel::kSparseMma, tile);
        return plan;
      }
    }
  }
  // Values that the dtype of x holds exactly: others would be rounded once more.
  if (half_x && (p.value_dtype == p.x_dtype || p.value_dtype == DType::kI8)) {
    use(NmKernel::kDenseMma, kDenseTile);
  } else {
    use(NmKernel::kFma, kFmaTile);
  }
  return plan;
}

}  // namespace sparsekern::cuda
