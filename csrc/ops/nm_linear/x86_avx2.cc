// SPDX-License-Identifier: Apache-2.0
// nm_linear for AVX2: permutes of 4 and of 8 floats; wider windows blend them by the next bits.
#include "base/simd/vector_x86_avx2.h"
#include "ops/nm_linear/generic.h"

namespace sparsekern {
namespace {

struct NmAvx2 : Avx2 {
  using Word = __m256i;
  static Word LoadWord(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <int b>
  static Word Shift(Word w) {
    return _mm256_srli_epi32(w, b);
  }
  static Reg Blend(Reg low, Reg high, Word w, int bit) {
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(w, 31 - bit)));
  }
  template <int W>
  static Reg Pick(const float* x, Word w) {
    if constexpr (W == 4) {
      return _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(x)), w);
    } else if constexpr (W == 16) {
      return Blend(_mm256_permutevar8x32_ps(Load(x), w), _mm256_permutevar8x32_ps(Load(x + 8), w),
                   w, 3);
    } else {
      return Blend(Pick<16>(x, w), Pick<16>(x + 16, w), w, 4);
    }
  }
  template <int W>
  static void StoreColumns(uint8_t* p, Word w, int first) {
    const Word column =
        _mm256_add_epi32(_mm256_and_si256(w, _mm256_set1_epi32(W - 1)), _mm256_set1_epi32(first));
    const __m128i pairs =
        _mm_packs_epi32(_mm256_castsi256_si128(column), _mm256_extracti128_si256(column, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(pairs, pairs));
  }
};

}  // namespace

extern const NmKernels kNmKernels_x86_avx2 = MakeNmKernels<NmAvx2>(kTileKernels_x86_avx2, 2);

}  // namespace sparsekern
