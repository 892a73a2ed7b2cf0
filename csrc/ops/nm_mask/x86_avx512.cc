// SPDX-License-Identifier: Apache-2.0
// nm_mask for AVX-512 (F, BW, DQ, VL).
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own intrinsics' undefined registers for uninitialized variables (GCC bug
// 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "ops/nm_mask/make_kernels.h"

namespace sparsekern {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  using Reg = __m512i;
  using Mask = __mmask16;
  static Reg Set1(int32_t v) { return _mm512_set1_epi32(v); }
  static Reg And(Reg a, Reg b) { return _mm512_and_si512(a, b); }
  static Reg Xor(Reg a, Reg b) { return _mm512_xor_si512(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm512_sub_epi32(a, b); }
  static Reg Sign(Reg v) { return _mm512_srai_epi32(v, 31); }
  static Reg Load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Reg LoadHalf(const uint16_t* p) {
    return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m128i Quad(const int32_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static Reg LoadQuads(const int32_t* p, int64_t stride) {
    Reg v = _mm512_castsi128_si512(Quad(p));
    v = _mm512_inserti32x4(v, Quad(p + stride), 1);
    v = _mm512_inserti32x4(v, Quad(p + 2 * stride), 2);
    return _mm512_inserti32x4(v, Quad(p + 3 * stride), 3);
  }
  static Reg LoadHalfQuads(const uint16_t* p, int64_t stride) {
    const __m128i low = _mm_unpacklo_epi64(HalfQuad(p), HalfQuad(p + stride));
    const __m128i high = _mm_unpacklo_epi64(HalfQuad(p + 2 * stride), HalfQuad(p + 3 * stride));
    return Widen(_mm256_set_m128i(high, low));
  }
  static __m128i HalfQuad(const uint16_t* p) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  }
  static Reg Widen(__m256i v) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16); }
  static Reg Lo32(Reg a, Reg b) { return _mm512_unpacklo_epi32(a, b); }
  static Reg Hi32(Reg a, Reg b) { return _mm512_unpackhi_epi32(a, b); }
  static Reg Lo64(Reg a, Reg b) { return _mm512_unpacklo_epi64(a, b); }
  static Reg Hi64(Reg a, Reg b) { return _mm512_unpackhi_epi64(a, b); }
  static Mask Greater(Reg a, Reg b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static Reg Where(Mask mask, Reg a, Reg b) { return _mm512_mask_blend_epi32(mask, b, a); }
  static Reg Raise(Reg rank, Mask mask) {
    return _mm512_mask_sub_epi32(rank, mask, rank, Set1(-1));
  }
  static Reg Lower(Reg rank, Mask mask) {
    return _mm512_mask_add_epi32(rank, mask, rank, Set1(-1));
  }
  static Reg Mark(Reg word, Mask mask, Reg bits) {
    return _mm512_mask_or_epi32(word, mask, word, bits);
  }
  static void Store(int32_t* p, Reg v) { _mm512_storeu_si512(p, v); }
  static Reg Or(Reg a, Reg b) { return _mm512_or_si512(a, b); }
  static Reg ShiftLeft(Reg v, int count) { return _mm512_sll_epi32(v, _mm_cvtsi32_si128(count)); }
  static Mask Equal(Reg a, Reg b) { return _mm512_cmpeq_epi32_mask(a, b); }
  static Mask Any(Reg a, Reg b) { return _mm512_test_epi32_mask(a, b); }
  static Mask Flags(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm_test_epi8_mask(v, v);
  }
  static bool None(Mask mask) { return mask == 0; }
  static void StoreFlags(uint8_t* p, Mask mask) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_maskz_set1_epi8(mask, 1));
  }
  static void StoreGrouped(uint8_t* p, Reg v) {
    const Reg order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, v));
  }
  static void StoreQuads(uint8_t* p, int64_t stride, Reg v) {
    Store(p, _mm512_castsi512_si128(v));
    Store(p + stride, _mm512_extracti32x4_epi32(v, 1));
    Store(p + 2 * stride, _mm512_extracti32x4_epi32(v, 2));
    Store(p + 3 * stride, _mm512_extracti32x4_epi32(v, 3));
  }
  static void Store(uint8_t* p, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
};

}  // namespace

extern const NmMaskKernels kNmMaskKernels_x86_avx512 =
    MakeNmMaskKernels<Avx512>("x86_avx512", kAvx512);

}  // namespace sparsekern
