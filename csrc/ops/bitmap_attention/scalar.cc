// SPDX-License-Identifier: Apache-2.0
// bitmap_attention for plain C++.
#include "base/simd/vector_scalar.h"
#include "ops/bitmap_attention/generic.h"

namespace sparsekern {
namespace {

struct KvScalar : Scalar {
  static Reg SumRows(const Reg* r) { return *r; }
};

}  // namespace

extern const BitmapAttentionKernels kBitmapAttentionKernels_scalar =
    MakeBitmapAttentionKernels<KvScalar>(kTileKernels_scalar);

}  // namespace sparsekern
