// SPDX-License-Identifier: Apache-2.0
// bitmap_attention for AVX2.
#include "base/simd/vector_x86_avx2.h"
#include "ops/bitmap_attention/generic.h"

namespace sparsekern {
namespace {

struct KvAvx2 : Avx2 {
  static Reg SumRows(const Reg* r) {
    const Reg a = _mm256_hadd_ps(_mm256_hadd_ps(r[0], r[1]), _mm256_hadd_ps(r[2], r[3]));
    const Reg b = _mm256_hadd_ps(_mm256_hadd_ps(r[4], r[5]), _mm256_hadd_ps(r[6], r[7]));
    return Add(_mm256_blend_ps(a, b, 0xf0), _mm256_permute2f128_ps(a, b, 0x21));
  }
};

}  // namespace

extern const BitmapAttentionKernels kBitmapAttentionKernels_x86_avx2 =
    MakeBitmapAttentionKernels<KvAvx2>(kTileKernels_x86_avx2);

}  // namespace sparsekern
