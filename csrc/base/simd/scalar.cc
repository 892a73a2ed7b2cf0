// SPDX-License-Identifier: Apache-2.0
#include "base/simd/make_tile_kernels.h"
#include "base/simd/vector_scalar.h"

namespace sparsekern {

extern const TileKernels kTileKernels_scalar = MakeTileKernels<Scalar>("scalar", kScalar);

}  // namespace sparsekern
