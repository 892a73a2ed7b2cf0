// SPDX-License-Identifier: Apache-2.0
// What AVX-512 kernels share that expand a word of 64 columns at once, as 16-bit elements or bytes,
// and widen afterwards.
//
// What a word's kept values become are four vectors in an order of their own, so that widening
// costs no permutation: bf16 are the upper halves of 32-bit lanes, one after the other; a byte
// moves to the top of its lane, where it is a number times 2^24. What they are multiplied by is put
// into the same order once, by Arrange. Pruned weights are zeros, and are multiplied: no mask but
// the expansion's.
#pragma once

#include "base/simd/vector_x86_avx512.h"

namespace sparsekern {
namespace {

struct Avx512Ordered : Avx512 {
  // 64 bytes, times 2^24.
  static void WidenBytes(__m512i v, Reg* out) {
    out[0] = _mm512_cvtepi32_ps(_mm512_slli_epi32(v, 24));
    out[1] = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(v, ToTop(1)));
    out[2] = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(v, ToTop(2)));
    out[3] = _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(-0x1000000)));
  }
  // 32 columns of bf16.
  static void WidenBF16(__m512i v, Reg* out) {
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(-0x10000)));
  }
  template <DType D>
  static constexpr float kWordScale = D == DType::kI8 ? 0x1p-24f : 1.0f;

  // x[64] in the order that SpreadWord<D> puts columns in.
  template <DType D>
  static void Arrange(float* x) {
    const __m512i lane = Lane();
    Reg v[4], to[4];
    for (int i = 0; i < 4; ++i) v[i] = Load(x + i * kLanes);
    if constexpr (D == DType::kBF16) {
      const __m512i even = _mm512_slli_epi32(lane, 1);
      const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
      for (int i = 0; i < 4; i += 2) {
        to[i] = _mm512_permutex2var_ps(v[i], even, v[i + 1]);
        to[i + 1] = _mm512_permutex2var_ps(v[i], odd, v[i + 1]);
      }
    } else if constexpr (D == DType::kI8) {
      for (int i = 0; i < 4; ++i) {  // lanes 0 .. 7 from the first half, 8 .. 15 from the second
        const __m512i from =
            _mm512_add_epi32(_mm512_slli_epi32(lane, 2), _mm512_set1_epi32(i));  // modulo 32
        to[i] = _mm512_mask_blend_ps(0xff00, _mm512_permutex2var_ps(v[0], from, v[1]),
                                     _mm512_permutex2var_ps(v[2], from, v[3]));
      }
    } else {
      return;
    }
    for (int i = 0; i < 4; ++i) Store(x + i * kLanes, to[i]);
  }

  // The way back, of bf16.
  static void Restore(float* x) {
    const __m512i lane = Lane();
    const __m512i odd = _mm512_slli_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(1)), 4);
    const __m512i low = _mm512_add_epi32(_mm512_srli_epi32(lane, 1), odd);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int i = 0; i < 4; i += 2) {
      const Reg a = Load(x + i * kLanes), b = Load(x + (i + 1) * kLanes);
      Store(x + i * kLanes, _mm512_permutex2var_ps(a, low, b));
      Store(x + (i + 1) * kLanes, _mm512_permutex2var_ps(a, high, b));
    }
  }

  // Whether no lane is NaN or above `limit` by magnitude.
  static bool AllWithin(Reg v, float limit) {
    return _mm512_cmp_ps_mask(_mm512_abs_ps(v), Set1(limit), _CMP_LE_OQ) == 0xffff;
  }

 private:
  static __m512i Lane() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  // For a shuffle of bytes: byte i of every 32-bit lane to its top, zeros below.
  static __m512i ToTop(int i) {
    const __m512i of_part = _mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0);
    return _mm512_or_si512(_mm512_slli_epi32(_mm512_add_epi32(of_part, _mm512_set1_epi32(i)), 24),
                           _mm512_set1_epi32(0x808080));
  }
};

}  // namespace
}  // namespace sparsekern
