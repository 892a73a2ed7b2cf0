// SPDX-License-Identifier: Apache-2.0
// nm_linear for AVX-512: a permute reads the low 2, 4 or 5 bits of each lane and ignores the
// others.
#include "base/simd/vector_x86_avx512.h"
#include "ops/nm_linear/generic.h"

namespace sparsekern {
namespace {

struct NmAvx512 : Avx512 {
  using Word = __m512i;
  static Word LoadWord(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int b>
  static Word Shift(Word w) {
    return _mm512_srli_epi32(w, b);
  }
  template <int W>
  static Reg Pick(const float* x, Word w) {
    if constexpr (W == 4) {
      return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(x)), w);
    } else if constexpr (W == 16) {
      return _mm512_permutexvar_ps(w, Load(x));
    } else {
      return _mm512_permutex2var_ps(Load(x), w, Load(x + 16));
    }
  }
  template <int W>
  static void StoreColumns(uint8_t* p, Word w, int first) {
    const Word column =
        _mm512_add_epi32(_mm512_and_si512(w, _mm512_set1_epi32(W - 1)), _mm512_set1_epi32(first));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(column));
  }
};

}  // namespace

extern const NmKernels kNmKernels_x86_avx512 = MakeNmKernels<NmAvx512>(kTileKernels_x86_avx512, 16);

}  // namespace sparsekern
