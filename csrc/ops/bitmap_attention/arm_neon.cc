// SPDX-License-Identifier: Apache-2.0
// bitmap_attention for NEON.
#include "base/simd/vector_arm_neon.h"
#include "ops/bitmap_attention/generic.h"

namespace sparsekern {
namespace {

struct KvNeon : Neon {
  static Reg SumRows(const Reg* r) {
    return vpaddq_f32(vpaddq_f32(r[0], r[1]), vpaddq_f32(r[2], r[3]));
  }
};

}  // namespace

extern const BitmapAttentionKernels kBitmapAttentionKernels_arm_neon =
    MakeBitmapAttentionKernels<KvNeon>(kTileKernels_arm_neon);

}  // namespace sparsekern
