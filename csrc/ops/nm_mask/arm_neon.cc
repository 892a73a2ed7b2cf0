// SPDX-License-Identifier: Apache-2.0
// nm_mask for NEON, the baseline of 64-bit ARM.
#include <arm_neon.h>

#include "ops/nm_mask/make_kernels.h"

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
  static void Store(int32_t* p, Reg v) { vst1q_s32(p, v); }
  static Reg Or(Reg a, Reg b) { return vorrq_s32(a, b); }
  static Reg ShiftLeft(Reg v, int count) { return vshlq_s32(v, vdupq_n_s32(count)); }
  static Mask Equal(Reg a, Reg b) { return vceqq_s32(a, b); }
  static Mask Any(Reg a, Reg b) { return vtstq_s32(a, b); }
  static Mask Flags(const uint8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof four);
    const uint16x8_t half = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    const uint32x4_t v = vmovl_u16(vget_low_u16(half));
    return vtstq_u32(v, v);
  }
  static bool None(Mask mask) { return vmaxvq_u32(mask) == 0; }
  static void StoreFlags(uint8_t* p, Mask mask) {
    const uint16x4_t half = vmovn_u32(vandq_u32(mask, vdupq_n_u32(1)));
    const uint8x8_t flags = vmovn_u16(vcombine_u16(half, half));
    vst1_lane_u32(reinterpret_cast<uint32_t*>(p), vreinterpret_u32_u8(flags), 0);
  }
  static void StoreGrouped(uint8_t* p, Reg v) { vst1q_u8(p, vreinterpretq_u8_s32(v)); }
  static void StoreQuads(uint8_t* p, int64_t, Reg v) { StoreGrouped(p, v); }
};

}  // namespace

extern const NmMaskKernels kNmMaskKernels_arm_neon = MakeNmMaskKernels<Neon>("arm_neon", kNeon);

}  // namespace sparsekern
