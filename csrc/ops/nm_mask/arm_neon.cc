// SPDX-License-Identifier: Apache-2.0
// nm_mask for NEON, the baseline of 64-bit ARM.
#include <arm_neon.h>

#include "ops/nm_mask/generic.h"

namespace sparsekern {
namespace {

struct Neon {
  static constexpr int kLanes = 4;
  using Reg = int32x4_t;
  using Mask = uint32x4_t;
  static Reg Set1(int32_t v) { return vdupq_n_s32(v); }
  static Reg And(Reg a, Reg b) { return vandq_s32(a, b); }
  static Reg Xor(Reg a, Reg b) { return veorq_s32(a, b); }
  static Reg Sub(Reg a, Reg b) { return vsubq_s32(a, b); }
  static Reg Sign(Reg v) { return vshrq_n_s32(v, 31); }
  static Reg Load(const int32_t* p) { return vld1q_s32(p); }
  static Reg LoadHalf(const uint16_t* p) {
    return vreinterpretq_s32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  static Reg LoadQuads(const int32_t* p, int64_t) { return Load(p); }
  static Reg LoadHalfQuads(const uint16_t* p, int64_t) { return LoadHalf(p); }
  static Reg Lo32(Reg a, Reg b) { return vzip1q_s32(a, b); }
  static Reg Hi32(Reg a, Reg b) { return vzip2q_s32(a, b); }
  static Reg Lo64(Reg a, Reg b) {
    return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
  }
  static Reg Hi64(Reg a, Reg b) {
    return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
  }
  static Mask Greater(Reg a, Reg b) { return vcgtq_s32(a, b); }
  static Reg Where(Mask mask, Reg a, Reg b) { return vbslq_s32(mask, a, b); }
  static Reg Raise(Reg rank, Mask mask) { return vsubq_s32(rank, vreinterpretq_s32_u32(mask)); }
  static Reg Lower(Reg rank, Mask mask) { return vaddq_s32(rank, vreinterpretq_s32_u32(mask)); }
  static Reg Mark(Reg word, Mask mask, Reg bits) {
    return vorrq_s32(word, vandq_s32(vreinterpretq_s32_u32(mask), bits));
  }
  static void StoreGrouped(uint8_t* p, Reg v) { vst1q_u8(p, vreinterpretq_u8_s32(v)); }
  static void StoreQuads(uint8_t* p, int64_t, Reg v) { StoreGrouped(p, v); }
};

}  // namespace

extern const NmMaskKernels kNmMaskKernels_arm_neon = MakeNmMaskKernels<Neon>("arm_neon", kNeon);

}  // namespace sparsekern
