// SPDX-License-Identifier: Apache-2.0
// bitmap_attention for AVX-512 (F, BW, DQ, VL).
#include "base/simd/vector_x86_avx512.h"
#include "ops/bitmap_attention/generic.h"

namespace sparsekern {
namespace {

struct KvAvx512 : Avx512 {
  // Halves the number of vectors four times: single lanes, pairs, then parts of 128 bits.
  static Reg SumRows(const Reg* r) {
    Reg a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i) {
      a[i] = Add(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]),
                 _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    }
    for (int i = 0; i < 4; ++i) {
      b[i] = Add(_mm512_mask_blend_ps(0xcccc, a[2 * i], a[2 * i + 1]),
                 _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x4e));
    }
    for (int i = 0; i < 2; ++i) {
      c[i] = Add(_mm512_mask_blend_ps(0xff00, b[2 * i], b[2 * i + 1]),
                 _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x4e));
    }
    return Add(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
  }
};

}  // namespace

extern const BitmapAttentionKernels kBitmapAttentionKernels_x86_avx512 =
    MakeBitmapAttentionKernels<KvAvx512>(kTileKernels_x86_avx512);

}  // namespace sparsekern
