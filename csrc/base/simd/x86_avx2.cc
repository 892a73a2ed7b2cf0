// SPDX-License-Identifier: Apache-2.0
#include "base/simd/make_tile_kernels.h"
#include "base/simd/vector_x86_avx2.h"

namespace sparsekern {

extern const TileKernels kTileKernels_x86_avx2 = MakeTileKernels<Avx2>("x86_avx2", kAvx2);

}  // namespace sparsekern
