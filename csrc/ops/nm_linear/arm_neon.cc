// SPDX-License-Identifier: Apache-2.0
// nm_linear for NEON: table look-ups (tbl) of 16, 64 and twice 64 bytes.
#include "base/simd/vector_arm_neon.h"
#include "ops/nm_linear/generic.h"

namespace sparsekern {
namespace {

struct NmNeon : Neon {
  using Word = uint32x4_t;
  static Word LoadWord(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
  template <int b>
  static Word Shift(Word w) {
    return vshrq_n_u32(w, b);
  }
  // The four bytes of float i are 4 i .. 4 i + 3.
  template <int W>
  static Reg Pick(const float* x, Word w) {
    const uint32x4_t field = vandq_u32(w, vdupq_n_u32(W - 1));
    const uint8x16_t control =
        vreinterpretq_u8_u32(vmlaq_u32(vdupq_n_u32(0x03020100), field, vdupq_n_u32(0x04040404)));
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(x);
    uint8x16_t picked;
    if constexpr (W == 4) {
      picked = vqtbl1q_u8(vld1q_u8(bytes), control);
    } else {
      picked = vqtbl4q_u8(vld1q_u8_x4(bytes), control);  // 0 where the control is beyond
      if constexpr (W == 32) {
        const uint8x16_t above = vsubq_u8(control, vdupq_n_u8(64));
        picked = vqtbx4q_u8(picked, vld1q_u8_x4(bytes + 64), above);
      }
    }
    return vreinterpretq_f32_u8(picked);
  }
  template <int W>
  static void StoreColumns(uint8_t* p, Word w, int first) {
    const uint32x4_t column =
        vaddq_u32(vandq_u32(w, vdupq_n_u32(W - 1)), vdupq_n_u32(static_cast<uint32_t>(first)));
    const uint16x4_t half = vmovn_u32(column);
    const uint32_t four =
        vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(half, half))), 0);
    std::memcpy(p, &four, sizeof four);
  }
};

}  // namespace

extern const NmKernels kNmKernels_arm_neon = MakeNmKernels<NmNeon>(kTileKernels_arm_neon, 2);

}  // namespace sparsekern
