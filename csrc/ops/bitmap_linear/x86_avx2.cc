// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for AVX2.
#include "base/simd/vector_x86_avx2.h"
#include "ops/bitmap_linear/generic.h"

namespace sparsekern {

extern const BitmapKernels kBitmapKernels_x86_avx2 =
    MakeBitmapKernels<Avx2>(kTileKernels_x86_avx2, 4);

}  // namespace sparsekern
