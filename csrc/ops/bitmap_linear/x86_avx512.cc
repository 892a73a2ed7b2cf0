// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for AVX-512.
#include "base/simd/vector_x86_avx512.h"
#include "ops/bitmap_linear/generic.h"

namespace sparsekern {

extern const BitmapKernels kBitmapKernels_x86_avx512 =
    MakeBitmapKernels<Avx512>(kTileKernels_x86_avx512, 16);

}  // namespace sparsekern
