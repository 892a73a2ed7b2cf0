// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for AVX-512 with VBMI2.
#include "base/simd/vector_x86_avx512vbmi2.h"
#include "ops/bitmap_linear/x86_arranged.h"

namespace sparsekern {

extern const BitmapKernels kBitmapKernels_x86_avx512vbmi2 =
    WithArranged<Avx512Vbmi2, DType::kBF16, DType::kF16, DType::kI8>();

}  // namespace sparsekern
