// SPDX-License-Identifier: Apache-2.0
// bitmap_attention for AVX-512 (F, BW, DQ, VL).
#include "base/simd/vector_x86_avx512.h"
#include "ops/bitmap_attention/generic.h"

namespace sparsekern {

extern const BitmapAttentionKernels kBitmapAttentionKernels_x86_avx512 =
    MakeBitmapAttentionKernels<Avx512>(kTileKernels_x86_avx512);

}  // namespace sparsekern
