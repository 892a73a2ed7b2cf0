// SPDX-License-Identifier: Apache-2.0
// gqs_linear for AVX2: a field is shifted to the top, and back down with its sign.
#include "base/simd/vector_x86_avx2.h"
#include "ops/gqs_linear/generic.h"

namespace sparsekern {
namespace {

struct GqsAvx2 : Avx2 {
  static constexpr int kMostRows = 4;
  static constexpr bool kGroups = true;
  static constexpr bool kMasks = false;
  using Word = __m256i;
  static Word LoadWord(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <int b>
  static Reg Code(Word w, int j) {
    const Word top = _mm256_slli_epi32(w, 32 - b - b * j);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 32 - b));
  }
  static float Sum(Reg v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

}  // namespace

extern const GqsKernels kGqsKernels_x86_avx2 = MakeGqsKernels<GqsAvx2>(kTileKernels_x86_avx2, 8);

}  // namespace sparsekern
