// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for AVX-512 with VBMI2: decode with x in the order that whole words expand to, and
// expansion to dense rows.
#include "base/simd/vector_x86_avx512vbmi2.h"
#include "ops/bitmap_linear/x86_arranged.h"

namespace sparsekern {
namespace {

constexpr BitmapKernels WithExpansion() {
  BitmapKernels kernels = WithArranged<Avx512Vbmi2, DType::kBF16, DType::kF16, DType::kI8>(16);
  kernels.expand = BitmapExpand<Avx512Vbmi2>;
  return kernels;
}

}  // namespace

extern const BitmapKernels kBitmapKernels_x86_avx512vbmi2 = WithExpansion();

}  // namespace sparsekern
