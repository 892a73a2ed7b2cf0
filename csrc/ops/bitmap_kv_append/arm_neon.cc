// SPDX-License-Identifier: Apache-2.0
// bitmap_kv_append for NEON.
#include "ops/bitmap_kv_append/generic.h"

namespace sparsekern {

extern const BitmapKvAppendKernels kBitmapKvAppendKernels_arm_neon =
    MakeBitmapKvAppendKernels("arm_neon");

}  // namespace sparsekern
