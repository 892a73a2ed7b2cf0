// SPDX-License-Identifier: Apache-2.0
// nm_mask for AVX2.
#include <immintrin.h>

#include "ops/nm_mask/make_kernels.h"

namespace sparsekern {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using Reg = __m256i;
  using Mask = __m256i;  // -1 where set
  static Reg Set1(int32_t v) { return _mm256_set1_epi32(v); }
  static Reg And(Reg a, Reg b) { return _mm256_and_si256(a, b); }
  static Reg Xor(Reg a, Reg b) { return _mm256_xor_si256(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm256_sub_epi32(a, b); }
  static Reg Sign(Reg v) { return _mm256_srai_epi32(v, 31); }
  static __m128i Part(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static Reg Load(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Reg LoadHalf(const uint16_t* p) { return Widen(Part(p)); }
  static Reg LoadQuads(const int32_t* p, int64_t stride) {
    return _mm256_set_m128i(Part(p + stride), Part(p));
  }
  static Reg LoadHalfQuads(const uint16_t* p, int64_t stride) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + stride));
    return Widen(_mm_unpacklo_epi64(low, high));
  }
  static Reg Widen(__m128i v) { return _mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16); }
  static Reg Lo32(Reg a, Reg b) { return _mm256_unpacklo_epi32(a, b); }
  static Reg Hi32(Reg a, Reg b) { return _mm256_unpackhi_epi32(a, b); }
  static Reg Lo64(Reg a, Reg b) { return _mm256_unpacklo_epi64(a, b); }
  static Reg Hi64(Reg a, Reg b) { return _mm256_unpackhi_epi64(a, b); }
  static Mask Greater(Reg a, Reg b) { return _mm256_cmpgt_epi32(a, b); }
  static Reg Where(Mask mask, Reg a, Reg b) { return _mm256_blendv_epi8(b, a, mask); }
  static Reg Raise(Reg rank, Mask mask) { return _mm256_sub_epi32(rank, mask); }
  static Reg Lower(Reg rank, Mask mask) { return _mm256_add_epi32(rank, mask); }
  static Reg Mark(Reg word, Mask mask, Reg bits) {
    return _mm256_or_si256(word, _mm256_and_si256(mask, bits));
  }
  static void Store(int32_t* p, Reg v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Reg Or(Reg a, Reg b) { return _mm256_or_si256(a, b); }
  static Reg ShiftLeft(Reg v, int count) { return _mm256_sll_epi32(v, _mm_cvtsi32_si128(count)); }
  static Mask Equal(Reg a, Reg b) { return _mm256_cmpeq_epi32(a, b); }
  static Mask Any(Reg a, Reg b) {
    return _mm256_xor_si256(Equal(And(a, b), _mm256_setzero_si256()), Set1(-1));
  }
  static Mask Flags(const uint8_t* p) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return Greater(_mm256_cvtepu8_epi32(v), _mm256_setzero_si256());
  }
  static bool None(Mask mask) { return _mm256_testz_si256(mask, mask) != 0; }
  static void StoreFlags(uint8_t* p, Mask mask) {
    const __m128i halves =
        _mm_packs_epi32(_mm256_castsi256_si128(mask), _mm256_extracti128_si256(mask, 1));
    const __m128i flags = _mm_and_si128(_mm_packs_epi16(halves, halves), _mm_set1_epi8(1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), flags);
  }
  static void StoreGrouped(uint8_t* p, Reg v) {
    const Reg order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(v, order));
  }
  static void StoreQuads(uint8_t* p, int64_t stride, Reg v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + stride), _mm256_extracti128_si256(v, 1));
  }
};

}  // namespace

extern const NmMaskKernels kNmMaskKernels_x86_avx2 = MakeNmMaskKernels<Avx2>("x86_avx2", kAvx2);

}  // namespace sparsekern
