// SPDX-License-Identifier: Apache-2.0
// The vector type of AVX-512 (F, BW, DQ, VL).
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own intrinsics' undefined registers for uninitialized variables (GCC bug
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "base/simd/expansion.h"
#include "base/simd/tile_kernels.h"

namespace sparsekern {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  static constexpr int kAccumulators = 16;
  static constexpr int kBatchVectors[] = {1, 2, 3, 4, 5};
  using Reg = __m512;
  static Reg Zero() { return _mm512_setzero_ps(); }
  static Reg Set1(float v) { return _mm512_set1_ps(v); }
  static Reg Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static void StorePart(float* p, Reg v, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
  }
  static Reg Add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg Mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg Div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg Fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg Max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg Min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg Round(Reg v) { return _mm512_roundscale_ps(v, 8); }
  // scalef keeps a NaN and overflows to infinity.
  static Reg Pow2(Reg n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }
  static Reg IfNegative(Reg x, Reg a, Reg b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
  }
  using Mask = __mmask16;
  static Mask Above(const uint8_t* bytes, int n) {
    return _mm_cmpgt_epu8_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)),
                               _mm_set1_epi8(static_cast<char>(n)));
  }
  static Reg Where(Mask mask, Reg a, Reg b) { return _mm512_mask_blend_ps(mask, b, a); }
  static __m256i Half(const uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Reg LoadBF16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(Half(p)), 16));
  }
  static Reg LoadF16(const uint16_t* p) { return _mm512_cvtph_ps(Half(p)); }
  static Reg LoadI8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // Round to nearest even; a NaN is made quiet and keeps its upper bits.
  static void StoreBF16(uint16_t* p, Reg v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i round = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, round), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet)));
  }
  static void StoreF16(uint16_t* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  using Lanes = __mmask16;
  static Lanes LanesOf(uint32_t bits) { return static_cast<Lanes>(bits); }
  // To a mask register from another goes through port 5, which the expansion needs; from a vector
  // through port 0. Every other piece takes the second way.
  template <int i>
  static Lanes Piece(const uint64_t* word) {
    if constexpr (i % 2 == 0) return static_cast<Lanes>(*word >> (16 * i));
    int32_t half;
    __builtin_memcpy(&half, reinterpret_cast<const uint8_t*>(word) + i / 2 * 4, sizeof half);
    const __m512i to_sign = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_movepi32_mask(_mm512_sllv_epi32(_mm512_set1_epi32(half), to_sign));
  }
  static Reg Spread(Reg v, Lanes lanes) { return _mm512_maskz_expand_ps(lanes, v); }
  static Reg FmaKept(Reg a, Reg b, Reg c, Lanes lanes) {
    return _mm512_mask3_fmadd_ps(a, b, c, lanes);
  }
  static int CountKept(uint32_t bits) { return __builtin_popcount(bits); }

  // In lane i the sum of the lanes of r[i].
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

  static void Transpose(Reg* r) {
    // Pairs, then quads of floats inside 128-bit parts, then the parts: 64 shuffles.
    Reg a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
      b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
      b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
      b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      a[i] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
      a[i + 4] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
      a[i + 8] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
      a[i + 12] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
      r[i + 4] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0x88);
      r[i + 12] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0xdd);
    }
  }
};

}  // namespace
}  // namespace sparsekern
