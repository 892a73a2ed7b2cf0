// SPDX-License-Identifier: Apache-2.0
// What the sparse tensor-core kernels of nm_linear share beside cuda_sparse_copies.h. Device code.
#pragma once

#include "base/cuda/launch.h"
#include "ops/nm_linear/cuda_launch.h"
#include "ops/nm_linear/cuda_sparse_copies.h"

namespace sparsekern::cuda {

template <int Features, int Tokens>
__device__ __forceinline__ ResultTile SparseTileOfBlock(const NmCudaArgs& a) {
  return TileOfBlock(blockIdx.x, DivideUp(a.problem.rows, Features),
                     DivideUp(a.problem.x_rows, Tokens));
}

// The layout by the sizes that the plan found to be those of 2:4.
__device__ __forceinline__ NmLayout SparseLayout(const NmCudaArgs& a) {
  return NmLayoutOf(a.problem.rows, a.problem.cols, 4, 2, a.problem.structure_bytes,
                    a.problem.value_count);
}

// The metadata register of a lane; `upper` is the word of row lane / 4 in a stage.
__device__ __forceinline__ uint32_t LoadMetadata(const uint8_t* upper, int lane) {
  return OrderedMetadata(Metadata(*reinterpret_cast<const uint32_t*>(upper),
                                  *reinterpret_cast<const uint32_t*>(upper + 32), lane));
}

// launch.operator()<E, Features, Tokens>() for the dtype of x and the plan's tile.
template <typename Launch>
cudaError_t WithSparseTile(const NmCudaArgs& a, const Launch& launch) {
  constexpr TileSize kLarge = kSparseTiles[0], kSmall = kSparseTiles[1];
  const bool large = a.plan.features == kLarge.features;
  if (a.problem.x_dtype == DType::kF16) {
    return large ? launch.template operator()<__half, kLarge.features, kLarge.rows_of_x>()
                 : launch.template operator()<__half, kSmall.features, kSmall.rows_of_x>();
  }
  return large ? launch.template operator()<__nv_bfloat16, kLarge.features, kLarge.rows_of_x>()
               : launch.template operator()<__nv_bfloat16, kSmall.features, kSmall.rows_of_x>();
}

}  // namespace sparsekern::cuda
