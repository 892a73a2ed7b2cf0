// SPDX-License-Identifier: Apache-2.0
// bitmap_linear in plain C++.
#include "base/simd/vector_scalar.h"
#include "ops/bitmap_linear/generic.h"

namespace sparsekern {

extern const BitmapKernels kBitmapKernels_scalar =
    MakeBitmapKernels<Scalar>(kTileKernels_scalar, 2);

}  // namespace sparsekern
