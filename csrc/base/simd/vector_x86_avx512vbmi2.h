// SPDX-License-Identifier: Apache-2.0
// The vector type of AVX-512 with VBMI2, which expands 16-bit elements and bytes as they are
// stored: 64 columns, a word of bits, take two expansions of 16-bit values, or one of bytes, where
// four of 32-bit lanes would follow widening.
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

struct Avx512Vbmi2 : Avx512 {
  // The values from p on under the bits of `word`, times 1 / kWordScale, in the order of
  // Arrange<D>. Reads 64 bytes from p on; of 16-bit values also from behind those of the lower half
  // of the word.
  template <DType D>
  static void SpreadWord(const uint8_t* p, uint64_t word, Reg (&out)[4])
    requires(D != DType::kF32)
  {
    if constexpr (D == DType::kI8) {
      const __m512i v = _mm512_maskz_expand_epi8(word, Bytes(p));
      out[0] = _mm512_cvtepi32_ps(_mm512_slli_epi32(v, 24));
      out[1] = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(v, ToTop(1)));
      out[2] = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(v, ToTop(2)));
      out[3] = _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(-0x1000000)));
      return;
    }
    __m512i half[2];
    ExpandWord(p, word, half);
    for (int i = 0; i < 2; ++i) {
      if constexpr (D == DType::kBF16) {
        const __m512i upper = _mm512_and_si512(half[i], _mm512_set1_epi32(-0x10000));
        out[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32(half[i], 16));
        out[2 * i + 1] = _mm512_castsi512_ps(upper);
      } else {
        // Halves of a register meet port 5 on the way to lanes of 32 bits, halves in memory do not.
        alignas(64) uint16_t lanes[2 * kLanes];
        uint16_t* to = lanes;
        asm("" : "+r"(to));  // or the compiler sees the halves of a register
        const uint16_t* from = lanes;
        asm("" : "+r"(from));
        _mm512_store_si512(to, half[i]);
        out[2 * i] = LoadF16(from);
        out[2 * i + 1] = LoadF16(from + kLanes);
      }
    }
  }
  // The 16-bit values from p on under the bits of `word`, in the order of the columns. Reads as
  // SpreadWord does.
  static void StoreWord(const uint8_t* p, uint64_t word, uint16_t* out) {
    __m512i half[2];
    ExpandWord(p, word, half);
    _mm512_storeu_si512(out, half[0]);
    _mm512_storeu_si512(out + 2 * kLanes, half[1]);
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
  static void ExpandWord(const uint8_t* p, uint64_t word, __m512i (&half)[2]) {
    const auto low = static_cast<uint32_t>(word);
    auto high = static_cast<uint32_t>(word >> 32);
    asm("" : "+r"(high));  // a shift of mask registers would take port 5, and four cycles
    half[0] = _mm512_maskz_expand_epi16(low, Bytes(p));
    half[1] = _mm512_maskz_expand_epi16(high, Bytes(p + 2 * __builtin_popcount(low)));
  }
  // In a register: what an expansion reads of memory by itself depends on its mask, which
  // processors may take time over, and which Bochs 2.7 gets wrong.
  static __m512i Bytes(const uint8_t* p) {
    __m512i v = _mm512_loadu_si512(p);
    asm("" : "+v"(v));
    return v;
  }
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
