// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for NEON.
#include "base/simd/vector_arm_neon.h"
#include "ops/bitmap_linear/generic.h"

namespace sparsekern {

extern const BitmapKernels kBitmapKernels_arm_neon =
    MakeBitmapKernels<Neon>(kTileKernels_arm_neon, 4);

}  // namespace sparsekern
