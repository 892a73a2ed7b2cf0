// SPDX-License-Identifier: Apache-2.0
// The vector type of AVX2 with FMA, F16C and BMI2.
#pragma once

#include <immintrin.h>

#include "base/simd/expansion.h"
#include "base/simd/tile_kernels.h"

namespace sparsekern {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr int kAccumulators = 10;
  static constexpr int kBatchVectors[] = {1, 2, 4, 8, 10};
  using Reg = __m256;
  static Reg Zero() { return _mm256_setzero_ps(); }
  static Reg Set1(float v) { return _mm256_set1_ps(v); }
  static Reg Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void StorePart(float* p, Reg v, int n) { _mm256_maskstore_ps(p, Below(n), v); }
  static Reg Add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg Mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg Div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg Fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg Max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg Min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg Round(Reg v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Reg Pow2(Reg n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    const Reg power = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    return _mm256_blendv_ps(power, n, _mm256_cmp_ps(n, n, _CMP_UNORD_Q));
  }
  static Reg IfNegative(Reg x, Reg a, Reg b) { return _mm256_blendv_ps(b, a, x); }
  static __m256i Below(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  using Mask = __m256i;
  static Mask Above(const uint8_t* bytes, int n) {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    return _mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(b), _mm256_set1_epi32(n));
  }
  static Reg Where(Mask mask, Reg a, Reg b) {
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask));
  }
  static __m128i Half(const uint16_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static Reg LoadBF16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(Half(p)), 16));
  }
  static Reg LoadF16(const uint16_t* p) { return _mm256_cvtph_ps(Half(p)); }
  static Reg LoadI8(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static void StoreBF16(uint16_t* p, Reg v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i round = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, round), 16);
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i wide = _mm256_blendv_epi8(rounded, quiet, nan);
    const __m128i narrow =
        _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow);
  }
  static void StoreF16(uint16_t* p, Reg v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  static constexpr SpreadTable8 kSpread = MakeSpreadTable8();
  using Lanes = __m256i;  // which element, in the low three bits; negative where none
  static Lanes LanesOf(uint32_t bits) {
    const void* control = kSpread.control[bits];
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(control)));
  }
  template <int i>
  static Lanes Piece(const uint64_t* word) {
    return LanesOf(reinterpret_cast<const uint8_t*>(word)[i]);
  }
  static Reg OnlyKept(Reg v, Lanes lanes) {
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(lanes, 31)), v);
  }
  static Reg Spread(Reg v, Lanes lanes) {
    return OnlyKept(_mm256_permutevar8x32_ps(v, lanes), lanes);
  }
  static Reg FmaKept(Reg a, Reg b, Reg c, Lanes lanes) { return Fma(a, OnlyKept(b, lanes), c); }
  static int CountKept(uint32_t bits) { return __builtin_popcount(bits); }

  static void Transpose(Reg* r) {
    Reg a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
      b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
      b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
      b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
  }
};

}  // namespace
}  // namespace sparsekern
