// SPDX-License-Identifier: Apache-2.0
// csr kernels for AVX-512 (F, BW, DQ, VL).
#include "base/simd/vector_x86_avx512.h"
#include "ops/csr_spmm/generic.h"

namespace sparsekern {
namespace {

struct CsrAvx512 : Avx512 {
  // 128 columns of x are eight registers. A look-up is four two-register permutes and three blends,
  // about 8 cycles for 16 lanes; a gather takes 11 where it is fast and over 30 where the microcode
  // mitigates gather data sampling.
  struct Columns {
    Reg x0, x1, x2, x3, x4, x5, x6, x7;
    explicit Columns(const float* x)
        : x0(Load(x)),
          x1(Load(x + 16)),
          x2(Load(x + 32)),
          x3(Load(x + 48)),
          x4(Load(x + 64)),
          x5(Load(x + 80)),
          x6(Load(x + 96)),
          x7(Load(x + 112)) {}
    Reg Look(const uint8_t* index) const {
      const __m512i i =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(index)));
      const __mmask16 bit5 = _mm512_test_epi32_mask(i, _mm512_set1_epi32(32));
      // Not a test as well: tests and permutes compete for port 5, shifts and moves do not.
      const __mmask16 bit6 = _mm512_movepi32_mask(_mm512_slli_epi32(i, 25));
      const Reg low = _mm512_mask_blend_ps(bit5, _mm512_permutex2var_ps(x0, i, x1),
                                           _mm512_permutex2var_ps(x2, i, x3));
      const Reg high = _mm512_mask_blend_ps(bit5, _mm512_permutex2var_ps(x4, i, x5),
                                            _mm512_permutex2var_ps(x6, i, x7));
      return _mm512_mask_blend_ps(bit6, low, high);
    }
  };
};

}  // namespace

extern const CsrKernels kCsrKernels_x86_avx512 =
    MakeCsrKernels<CsrAvx512>(kTileKernels_x86_avx512, 4);

}  // namespace sparsekern
