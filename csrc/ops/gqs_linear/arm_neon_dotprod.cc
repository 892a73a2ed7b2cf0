// SPDX-License-Identifier: Apache-2.0
// gqs_linear with x in int8, by NEON's four-element dot product.
//
// A 32-bit word of the format holds one column of many units; a table look-up takes byte b of the
// sixteen words, so sixteen columns of a unit side by side (or of several, by fields of the byte).
// Codes stay in the top bits of their bytes, where they keep their signs, and so are 2^(8 - bits)
// times too large. Four rows of x are four sums; a dot product takes four columns of all of them,
// so sixteen multiply-adds, where fp32 takes four.
#include <arm_neon.h>

#include "ops/gqs_linear/kernels.h"

namespace sparsekern {
namespace {

constexpr int kRows = kGqsInt8Rows;

// S: a group has 2^S units.
template <int B, int S>
void DotRows(const GqsRun& run, const float* x_scale, const uint8_t* x, float* y) {
  constexpr int P = 8 / B, kUnits = 32 / B, kWithin = (1 << S) - 1;
  constexpr float kFactor = 1.0f / static_cast<float>(1 << (8 - B));
  static const uint8_t kBytes[16] = {0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60};
  const uint8x16_t bytes = vld1q_u8(kBytes);
  const uint8x16_t top = vdupq_n_u8(static_cast<uint8_t>(0xff << (8 - B)));
  for (int part = 0; part < run.count; ++part, y += kRows) {
    const int begin = run.starts[part] << S, end = run.starts[part + 1] << S;
    float32x4_t sum = vdupq_n_f32(0.0f);
    int32x4_t dots = vdupq_n_s32(0);
    for (int unit = begin & -kUnits; unit < end; unit += kUnits) {
      const uint8_t* values = run.values + unit / kUnits * 64;
      const uint8x16x4_t block = {
          {vld1q_u8(values), vld1q_u8(values + 16), vld1q_u8(values + 32), vld1q_u8(values + 48)}};
      for (int j = 0; j < kUnits; ++j) {
        const int u = unit + j, g = u >> S;
        if (u < begin || u >= end) continue;
        const auto quarter = static_cast<uint8_t>(j / P);
        const uint8x16_t fields = vqtbl4q_u8(block, vaddq_u8(bytes, vdupq_n_u8(quarter)));
        const auto up = static_cast<int8_t>(8 - B - B * (j % P));
        const int8x16_t w = vreinterpretq_s8_u8(vandq_u8(vshlq_u8(fields, vdupq_n_s8(up)), top));
        const auto* xu =
            reinterpret_cast<const int8_t*>(x + run.offset[g]) + (u & kWithin) * (kGqsUnit * kRows);
        dots = vdotq_laneq_s32(dots, vld1q_s8(xu), w, 0);
        dots = vdotq_laneq_s32(dots, vld1q_s8(xu + 16), w, 1);
        dots = vdotq_laneq_s32(dots, vld1q_s8(xu + 32), w, 2);
        dots = vdotq_laneq_s32(dots, vld1q_s8(xu + 48), w, 3);
        if ((u & kWithin) != kWithin) continue;
        const float32x4_t scales = vld1q_f32(x_scale + (run.offset[g] >> (4 + S)));
        // Scales first: the sum of a group times that of x alone may be beyond fp32.
        sum = vfmaq_f32(sum, vcvtq_f32_s32(dots), vmulq_n_f32(scales, run.scale[g]));
        dots = vdupq_n_s32(0);
      }
    }
    vst1q_f32(y, vmulq_n_f32(sum, kFactor));
  }
}

template <int B>
void Dot(const GqsRun& run, const float* x_scale, const uint8_t* x, float* y) {
  run.shift == 0   ? DotRows<B, 0>(run, x_scale, x, y)
  : run.shift == 1 ? DotRows<B, 1>(run, x_scale, x, y)
  : run.shift == 2 ? DotRows<B, 2>(run, x_scale, x, y)
                   : DotRows<B, 3>(run, x_scale, x, y);
}

void Quantize(const float* row, int64_t groups, int group, uint8_t* codes, float* scale) {
  for (int64_t g = 0; g < groups; ++g, row += group, codes += group) {
    float32x4_t most = vdupq_n_f32(0.0f), odd = most;
    for (int i = 0; i < group; i += 4) {
      const float32x4_t v = vld1q_f32(row + i);
      most = vmaxnmq_f32(most, vabsq_f32(v));
      odd = vfmaq_n_f32(odd, v, 0.0f);  // not 0 if something is not finite
    }
    const float largest = vmaxnmvq_f32(most), sum = vaddvq_f32(odd);
    const bool nothing = !(largest > 0x1p-100f);  // as Int8Scales (base/simd/quantization.h)
    scale[g] = sum != 0.0f ? __builtin_nanf("") : nothing ? 0.0f : largest / 127.0f;
    const float inverse = nothing ? 0.0f : 127.0f / largest;
    for (int i = 0; i < group; i += 8) {
      const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(row + i), inverse));
      const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(row + i + 4), inverse));
      const int8x8_t eight = vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high)));
      vst1_u8(codes + i, vreinterpret_u8_s8(eight));
    }
  }
}

}  // namespace

extern const GqsInt8Kernels kGqsInt8Kernels_arm_neon_dotprod = {
    "arm_neon_dotprod", {Dot<2>, Dot<4>, Dot<8>}, Quantize, nullptr};

}  // namespace sparsekern
