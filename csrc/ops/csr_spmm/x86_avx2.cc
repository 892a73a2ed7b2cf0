// SPDX-License-Identifier: Apache-2.0
// csr kernels for AVX2 with FMA and F16C.
#include "base/simd/vector_x86_avx2.h"
#include "ops/csr_spmm/generic.h"

namespace sparsekern {
namespace {

struct CsrAvx2 : Avx2 {
  // Eight scalar loads: a two-register permute does not exist, and vgatherdps took 9 ns for 8 lanes
  // on a processor with the mitigation for gather data sampling, against 2.6 ns for the loads.
  struct Columns {
    const float* x;
    explicit Columns(const float* block) : x(block) {}
    Reg Look(const uint8_t* index) const {
      constexpr int kIn = kCsrBlockCols - 1;  // an index of a corrupt structure stays inside
      return _mm256_setr_ps(x[index[0] & kIn], x[index[1] & kIn], x[index[2] & kIn],
                            x[index[3] & kIn], x[index[4] & kIn], x[index[5] & kIn],
                            x[index[6] & kIn], x[index[7] & kIn]);
    }
  };
};

}  // namespace

extern const CsrKernels kCsrKernels_x86_avx2 = MakeCsrKernels<CsrAvx2>(kTileKernels_x86_avx2, 2);

}  // namespace sparsekern
