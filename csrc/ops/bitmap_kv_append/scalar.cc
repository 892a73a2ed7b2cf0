// SPDX-License-Identifier: Apache-2.0
// bitmap_kv_append for the architecture's baseline.
#include "ops/bitmap_kv_append/generic.h"

namespace sparsekern {

extern const BitmapKvAppendKernels kBitmapKvAppendKernels_scalar =
    MakeBitmapKvAppendKernels("scalar");

}  // namespace sparsekern
