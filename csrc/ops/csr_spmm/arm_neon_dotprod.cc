// SPDX-License-Identifier: Apache-2.0
// csr products of int8 x with the dot product of ARMv8.2 (FEAT_DotProd).
#include <arm_neon.h>

#include "ops/csr_spmm/generic_int8.h"

namespace sparsekern {
namespace {

struct NeonDot {
  static constexpr int kPixels = 16, kLanes = 4;
  static constexpr uint32_t kOffset = 0;
  using Reg = int32x4_t;
  static Reg Set1(int32_t v) { return vdupq_n_s32(v); }
  static Reg Load(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
  static Reg LoadSums(const int32_t* p) { return vld1q_s32(p); }
  static void StoreSums(int32_t* p, Reg v) { vst1q_s32(p, v); }
  static Reg Add(Reg a, Reg b) { return vaddq_s32(a, b); }
  static Reg Dot(Reg sum, Reg codes, Reg w) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(w));
  }
  static void Interleave(Reg a, Reg b, Reg c, Reg d, Reg (&out)[4]) {
    const auto bytes = [](Reg v) { return vreinterpretq_s8_s32(v); };
    const auto pairs = [](int8x16_t v) { return vreinterpretq_s16_s8(v); };
    const auto quads = [](int16x8_t v) { return vreinterpretq_s32_s16(v); };
    const int16x8_t low_ab = pairs(vzip1q_s8(bytes(a), bytes(b)));
    const int16x8_t high_ab = pairs(vzip2q_s8(bytes(a), bytes(b)));
    const int16x8_t low_cd = pairs(vzip1q_s8(bytes(c), bytes(d)));
    const int16x8_t high_cd = pairs(vzip2q_s8(bytes(c), bytes(d)));
    out[0] = quads(vzip1q_s16(low_ab, low_cd));
    out[1] = quads(vzip2q_s16(low_ab, low_cd));
    out[2] = quads(vzip1q_s16(high_ab, high_cd));
    out[3] = quads(vzip2q_s16(high_ab, high_cd));
  }
  static void StoreCodes(const float* x, const float* inverse, uint8_t* out) {
    const auto whole = [&](int i) {
      return vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i), vld1q_f32(inverse + i))));
    };
    const int16x8_t low = vcombine_s16(whole(0), whole(4));
    const int16x8_t high = vcombine_s16(whole(8), whole(12));
    vst1q_s8(reinterpret_cast<int8_t*>(out), vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
  }
  static void Quad(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d,
                   uint32_t* out) {
    Reg quads[4];
    Interleave(Load(a), Load(b), Load(c), Load(d), quads);
    for (int i = 0; i < 4; ++i) vst1q_u32(out + 4 * i, vreinterpretq_u32_s32(quads[i]));
  }
};

}  // namespace

extern const CsrInt8Kernels kCsrInt8Kernels_arm_neon_dotprod = {
    "arm_neon_dotprod",
    {16, 32, 48, 64, 80},
    {Int8Codes<NeonDot>, Int8Codes<NeonDot>, Int8Codes<NeonDot>, Int8Codes<NeonDot>,
     Int8Codes<NeonDot>},
    {{Int8Tile<NeonDot, 1>, Int8Tile<NeonDot, 1>, Int8Tile<NeonDot, 1>, Int8Tile<NeonDot, 1>,
      Int8Tile<NeonDot, 1>},
     {Int8Tile<NeonDot, 2>, Int8Tile<NeonDot, 2>, Int8Tile<NeonDot, 2>, Int8Tile<NeonDot, 2>,
      Int8Tile<NeonDot, 2>},
     {Int8Tile<NeonDot, 4>, Int8Tile<NeonDot, 4>, Int8Tile<NeonDot, 4>, Int8Tile<NeonDot, 4>,
      Int8Tile<NeonDot, 4>}},
    Int8Rescale};

}  // namespace sparsekern
