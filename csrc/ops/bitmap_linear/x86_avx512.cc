// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for AVX-512. f16 gains nothing from slices: what they save, its conversion takes.
#include "base/simd/vector_x86_avx512slices.h"
#include "ops/bitmap_linear/x86_arranged.h"

namespace sparsekern {

extern const BitmapKernels kBitmapKernels_x86_avx512 =
    WithArranged<Avx512Slices, DType::kBF16, DType::kI8>(4);

}  // namespace sparsekern
