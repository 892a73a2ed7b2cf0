// SPDX-License-Identifier: Apache-2.0
// docs/kernels-neon.md counts the batch loop's instructions.
#include "base/simd/make_tile_kernels.h"
#include "base/simd/vector_arm_neon.h"

namespace sparsekern {

// 48 rows of x beside one weight: twelve independent sums, and of the maps that convolution nets
// end in (14x14 = 4 * 48 + 4, 7x7 = 48 + 1) hardly a lane is wasted.
extern const TileKernels kTileKernels_arm_neon = MakeTileKernels<Neon>("arm_neon", kNeon);

}  // namespace sparsekern
