// SPDX-License-Identifier: Apache-2.0
// The table of tile kernels of a vector type.
#pragma once

#include "base/simd/activations.h"
#include "base/simd/batch.h"
#include "base/simd/conversion.h"
#include "base/simd/quantization.h"
#include "base/simd/transposition.h"

namespace sparsekern {

// U0..U4: batch widths in vectors.
template <typename V, int U0, int U1, int U2, int U3, int U4>
static constexpr TileKernels MakeTileKernels(const char* name, IsaMask isa) {
  return TileKernels{
      name,
      isa,
      {U0 * V::kLanes, U1 * V::kLanes, U2 * V::kLanes, U3 * V::kLanes, U4 * V::kLanes},
      {{BatchTile<V, 1, U0>, BatchTile<V, 1, U1>, BatchTile<V, 1, U2>, BatchTile<V, 1, U3>,
        BatchTile<V, 1, U4>},
       {BatchTile<V, 2, U0>, BatchTile<V, 2, U1>, BatchTile<V, 2, U2>, BatchTile<V, 2, U3>,
        BatchTile<V, 2, U4>},
       {BatchTile<V, 4, U0>, BatchTile<V, 4, U1>, BatchTile<V, 4, U2>, BatchTile<V, 4, U3>,
        BatchTile<V, 4, U4>}},
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
