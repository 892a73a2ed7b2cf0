// SPDX-License-Identifier: Apache-2.0
// gqs_linear for AVX-512: a permute of a table of sixteen floats reads the low four bits of each
// lane, ignores the others, and so decodes a field of four bits, or of two, with one shift.
#include "base/simd/vector_x86_avx512.h"
#include "ops/gqs_linear/generic.h"

namespace sparsekern {
namespace {

struct GqsAvx512 : Avx512 {
  static constexpr int kMostRows = 16;
  static constexpr bool kGroups = true;
  static constexpr bool kMasks = true;
  using Word = __m512i;
  static Word LoadWord(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int b>
  static Reg Code(Word w, int j) {
    if constexpr (b == 4) {
      const Reg table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
      return _mm512_permutexvar_ps(_mm512_srli_epi32(w, static_cast<unsigned>(4 * j)), table);
    } else if constexpr (b == 2) {
      const Reg table = _mm512_setr_ps(0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1);
      return _mm512_permutexvar_ps(_mm512_srli_epi32(w, static_cast<unsigned>(2 * j)), table);
    } else {
      const Word top = _mm512_slli_epi32(w, static_cast<unsigned>(24 - 8 * j));
      return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24));
    }
  }
  static Reg FmaWhere(uint32_t bits, int j, Reg a, Reg b, Reg sum) {
    const __mmask16 all = _mm512_test_epi32_mask(_mm512_set1_epi32(static_cast<int>(bits)),
                                                 _mm512_set1_epi32(1 << j));
    return _mm512_mask3_fmadd_ps(a, b, sum, all);
  }
  static float Sum(Reg v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

// The positions of a word's bits are a compression of sixteen numbers. (Bit by bit, with a loop of
// unknown length, it took longer than the products.)
void GqsOffsetsAvx512(const uint8_t* words, int64_t word_count, int64_t skip, int64_t count,
                      uint32_t step, uint32_t* out) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  uint32_t bits = GqsMaskWord(words, 0);
  int64_t w = skip == 0 ? 0 : GqsSkip(words, word_count, skip, &bits);
  const __m512i first = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(16 * w)));
  __m512i position = _mm512_mullo_epi32(first, _mm512_set1_epi32(static_cast<int>(step)));
  const __m512i next = _mm512_set1_epi32(static_cast<int>(16 * step));
  uint32_t* const end = out + count;
  while (w < word_count && out < end) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), position));
    out += __builtin_popcount(bits);
    position = _mm512_add_epi32(position, next);
    if (++w < word_count) bits = GqsMaskWord(words, w);
  }
}

}  // namespace

extern const GqsKernels kGqsKernels_x86_avx512 =
    MakeGqsKernels<GqsAvx512>(kTileKernels_x86_avx512, 16, GqsOffsetsAvx512);

}  // namespace sparsekern
