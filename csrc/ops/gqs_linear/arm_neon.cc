// SPDX-License-Identifier: Apache-2.0
// gqs_linear for NEON: a field is shifted to the top, and back down with its sign.
#include "base/simd/vector_arm_neon.h"
#include "ops/gqs_linear/generic.h"

namespace sparsekern {
namespace {

struct GqsNeon : Neon {
  static constexpr int kMostRows = 4;
  static constexpr bool kGroups = true;
  static constexpr bool kMasks = false;
  using Word = uint32x4_t;
  static Word LoadWord(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
  template <int b>
  static Reg Code(Word w, int j) {
    const int32x4_t top = vshlq_s32(vreinterpretq_s32_u32(w), vdupq_n_s32(32 - b - b * j));
    return vcvtq_f32_s32(vshrq_n_s32(top, 32 - b));
  }
  static float Sum(Reg v) { return vaddvq_f32(v); }
};

}  // namespace

extern const GqsKernels kGqsKernels_arm_neon = MakeGqsKernels<GqsNeon>(kTileKernels_arm_neon, 8);

}  // namespace sparsekern
