// SPDX-License-Identifier: Apache-2.0
#include "base/simd/make_tile_kernels.h"
#include "base/simd/vector_x86_avx512.h"

namespace sparsekern {

extern const TileKernels kTileKernels_x86_avx512 = MakeTileKernels<Avx512>("x86_avx512", kAvx512);

}  // namespace sparsekern
