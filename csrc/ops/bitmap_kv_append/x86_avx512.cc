// SPDX-License-Identifier: Apache-2.0
// bitmap_kv_append for AVX-512 (F, BW, DQ, VL).
#include "ops/bitmap_kv_append/generic.h"

namespace sparsekern {

extern const BitmapKvAppendKernels kBitmapKvAppendKernels_x86_avx512 =
    MakeBitmapKvAppendKernels("x86_avx512");

}  // namespace sparsekern
