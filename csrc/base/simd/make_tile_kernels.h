// SPDX-License-Identifier: Apache-2.0
// The table of tile kernels of a vector type.
#pragma once

#include "base/simd/activations.h"
#include "base/simd/batch.h"
#include "base/simd/conversion.h"
#include "base/simd/quantization.h"
#include "base/simd/transposition.h"

namespace sparsekern {

template <typename V>
static constexpr TileKernels MakeTileKernels(const char* name, IsaMask isa) {
  constexpr const auto& kU = V::kBatchVectors;
  return TileKernels{
      name,
      isa,
      {kU[0] * V::kLanes, kU[1] * V::kLanes, kU[2] * V::kLanes, kU[3] * V::kLanes,
       kU[4] * V::kLanes},
      {{BatchTile<V, 1, kU[0]>, BatchTile<V, 1, kU[1]>, BatchTile<V, 1, kU[2]>,
        BatchTile<V, 1, kU[3]>, BatchTile<V, 1, kU[4]>},
       {BatchTile<V, 2, kU[0]>, BatchTile<V, 2, kU[1]>, BatchTile<V, 2, kU[2]>,
        BatchTile<V, 2, kU[3]>, BatchTile<V, 2, kU[4]>},
       {BatchTile<V, 4, kU[0]>, BatchTile<V, 4, kU[1]>, BatchTile<V, 4, kU[2]>,
        BatchTile<V, 4, kU[3]>, BatchTile<V, 4, kU[4]>}},
      {Expand<V, DType::kF32>, Expand<V, DType::kBF16>, Expand<V, DType::kF16>,
       Expand<V, DType::kI8>},
      {Narrow<V, DType::kF32>, Narrow<V, DType::kBF16>, Narrow<V, DType::kF16>},
      {PackRows<V, DType::kF32>, PackRows<V, DType::kBF16>, PackRows<V, DType::kF16>},
      {PackChannels<V, DType::kF32>, PackChannels<V, DType::kBF16>, PackChannels<V, DType::kF16>},
      {StoreRows<V, DType::kF32>, StoreRows<V, DType::kBF16>, StoreRows<V, DType::kF16>},
      FinishChannels<V>,
      FinishRow<V>,
      QuantizeRow<V>,
      TileSteps<V>,
      QuantizeTile<V>,
      Rescale<V>};
}

}  // namespace sparsekern
