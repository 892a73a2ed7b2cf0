// SPDX-License-Identifier: Apache-2.0
// The vector type of NEON, the baseline of 64-bit ARM.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "base/simd/expansion.h"
#include "base/simd/tile_kernels.h"

namespace sparsekern {
namespace {

struct Neon {
  static constexpr int kLanes = 4;
  // Of 32 registers; with 24 both GCC and Clang spill sums of some kernels.
  static constexpr int kAccumulators = 16;
  static constexpr int kBatchVectors[] = {2, 4, 8, 12, 16};
  using Reg = float32x4_t;
  static Reg Zero() { return vdupq_n_f32(0.0f); }
  static Reg Set1(float v) { return vdupq_n_f32(v); }
  static Reg Load(const float* p) { return vld1q_f32(p); }
  static void Store(float* p, Reg v) { vst1q_f32(p, v); }
  static Reg Add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg Mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static Reg Div(Reg a, Reg b) { return vdivq_f32(a, b); }
  static Reg Fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  // FMAX and FMIN answer NaN when either argument is one.
  static Reg Max(Reg a, Reg b) { return vmaxq_f32(a, b); }
  static Reg Min(Reg a, Reg b) { return vminq_f32(a, b); }
  static Reg Round(Reg v) { return vrndnq_f32(v); }
  static Reg Pow2(Reg n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    const Reg power = vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
    return vbslq_f32(vceqq_f32(n, n), power, n);  // a NaN stays one
  }
  static Reg IfNegative(Reg x, Reg a, Reg b) {
    return vbslq_f32(vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_f32(x), 31)), a, b);
  }
  using Mask = uint32x4_t;
  static Mask Above(const uint8_t* bytes, int n) {
    uint32_t four;
    std::memcpy(&four, bytes, sizeof four);
    const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
    return vcgtq_u32(vmovl_u16(vget_low_u16(wide)), vdupq_n_u32(static_cast<uint32_t>(n)));
  }
  static Reg Where(Mask mask, Reg a, Reg b) { return vbslq_f32(mask, a, b); }
  static Reg LoadBF16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  static Reg LoadF16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static Reg LoadI8(const int8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, sizeof four);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  // Round to nearest even; a NaN is made quiet and keeps its upper bits.
  static void StoreBF16(uint16_t* p, Reg v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
  }
  static void StoreF16(uint16_t* p, Reg v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }

  static constexpr SpreadTable4 kSpread = MakeSpreadTable4();
  using Lanes = uint8x16_t;  // which bytes of a vector; beyond it where none
  static Lanes LanesOf(uint32_t bits) { return vld1q_u8(kSpread.control[bits]); }
  template <int i>
  static Lanes Piece(const uint64_t* word) {
    return LanesOf(PieceBits<Neon, i>(*word));
  }
  static Reg Spread(Reg v, Lanes lanes) {
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), lanes));
  }
  static Reg FmaKept(Reg a, Reg b, Reg c, Lanes lanes) {
    const uint32x4_t pruned = vceqq_u32(vreinterpretq_u32_u8(lanes), vdupq_n_u32(0xffffffffu));
    return Fma(a, vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(b), pruned)), c);
  }
  // From a table: the instruction that counts bits works on vectors.
  static int CountKept(uint32_t bits) { return kSpread.count[bits]; }

  static void Transpose(Reg* r) {
    const Reg a = vtrn1q_f32(r[0], r[1]);
    const Reg b = vtrn2q_f32(r[0], r[1]);
    const Reg c = vtrn1q_f32(r[2], r[3]);
    const Reg d = vtrn2q_f32(r[2], r[3]);
    r[0] = Pairs1(a, c);
    r[1] = Pairs1(b, d);
    r[2] = Pairs2(a, c);
    r[3] = Pairs2(b, d);
  }
  static Reg Pairs1(Reg a, Reg b) {
    return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  }
  static Reg Pairs2(Reg a, Reg b) {
    return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  }
};

}  // namespace
}  // namespace sparsekern
