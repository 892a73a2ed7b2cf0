// SPDX-License-Identifier: Apache-2.0
// bitmap_kv_append for AVX2.
#include "ops/bitmap_kv_append/generic.h"

namespace sparsekern {

extern const BitmapKvAppendKernels kBitmapKvAppendKernels_x86_avx2 =
    MakeBitmapKvAppendKernels("x86_avx2");

}  // namespace sparsekern
