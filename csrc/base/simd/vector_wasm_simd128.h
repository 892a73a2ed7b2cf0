// SPDX-License-Identifier: Apache-2.0
// The vector type of WebAssembly simd128.
//
// simd128 has no fused multiply-add, so a vector takes three instructions (load, mul, add), two
// with relaxed SIMD, where the engine may fuse or not; engines keep values in the sixteen registers
// of x86 at most, one of them for themselves.
#pragma once

#include <wasm_simd128.h>

#include "base/simd/expansion.h"
#include "base/simd/tile_kernels.h"

namespace sparsekern {
namespace {

struct Simd128 {
  static constexpr int kLanes = 4;
  // Of 15 registers: as many loads of x may be in flight, and a weight. 12 were slower under V8.
  static constexpr int kAccumulators = 8;
  static constexpr int kBatchVectors[] = {2, 4, 8, 16, 20};
  using Reg = v128_t;
  static Reg Zero() { return wasm_f32x4_const_splat(0.0f); }
  static Reg Set1(float v) { return wasm_f32x4_splat(v); }
  static Reg Load(const float* p) { return wasm_v128_load(p); }
  static void Store(float* p, Reg v) { wasm_v128_store(p, v); }
  static Reg Add(Reg a, Reg b) { return wasm_f32x4_add(a, b); }
  static Reg Mul(Reg a, Reg b) { return wasm_f32x4_mul(a, b); }
  static Reg Div(Reg a, Reg b) { return wasm_f32x4_div(a, b); }
#if defined(__wasm_relaxed_simd__)
  static Reg Fma(Reg a, Reg b, Reg c) { return wasm_f32x4_relaxed_madd(a, b, c); }
#else
  static Reg Fma(Reg a, Reg b, Reg c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }
#endif
  // pmax(x, y) is x < y ? y : x and pmin(x, y) is y < x ? y : x: a NaN in x survives. They are one
  // instruction on x86, where f32x4.max is six.
  static Reg Max(Reg a, Reg b) { return wasm_f32x4_pmax(b, a); }
  static Reg Min(Reg a, Reg b) { return wasm_f32x4_pmin(b, a); }
  static Reg Round(Reg v) { return wasm_f32x4_nearest(v); }
  static Reg Pow2(Reg n) {
    const Reg exponent = wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_const_splat(127));
    return wasm_v128_bitselect(wasm_i32x4_shl(exponent, 23), n, wasm_f32x4_eq(n, n));
  }
  static Reg IfNegative(Reg x, Reg a, Reg b) {
    return wasm_v128_bitselect(a, b, wasm_i32x4_shr(x, 31));
  }
  using Mask = v128_t;
  static Mask Above(const uint8_t* bytes, int n) {
    const v128_t wide = wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(bytes));
    return wasm_i32x4_gt(wasm_u32x4_extend_low_u16x8(wide), wasm_i32x4_splat(n));
  }
  static Reg Where(Mask mask, Reg a, Reg b) { return wasm_v128_bitselect(a, b, mask); }
  static Reg LoadBF16(const uint16_t* p) { return wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16); }
  // As F32FromF16, on four lanes: normal numbers by moving bits, the rest by arithmetic on
  // integers.
  static Reg LoadF16(const uint16_t* p) {
    const Reg half = wasm_u32x4_load16x4(p);
    const Reg sign = wasm_i32x4_shl(wasm_v128_and(half, wasm_i32x4_const_splat(0x8000)), 16);
    const Reg magnitude = wasm_v128_and(half, wasm_i32x4_const_splat(0x7fff));
    const Reg moved = wasm_i32x4_shl(magnitude, 13);
    const Reg normal = wasm_i32x4_add(moved, wasm_i32x4_const_splat(112 << 23));
    const Reg subnormal =
        wasm_f32x4_mul(wasm_f32x4_convert_i32x4(magnitude), wasm_f32x4_const_splat(0x1p-24f));
    const Reg nan = wasm_i32x4_gt(magnitude, wasm_i32x4_const_splat(0x7c00));
    const Reg quiet = wasm_v128_and(nan, wasm_i32x4_const_splat(0x00400000));
    const Reg special =
        wasm_v128_or(wasm_v128_or(moved, wasm_i32x4_const_splat(0x7f800000)), quiet);
    Reg v = wasm_v128_bitselect(subnormal, normal,
                                wasm_i32x4_lt(magnitude, wasm_i32x4_const_splat(0x0400)));
    v = wasm_v128_bitselect(special, v, wasm_i32x4_ge(magnitude, wasm_i32x4_const_splat(0x7c00)));
    return wasm_v128_or(v, sign);
  }
  static Reg LoadI8(const int8_t* p) {
    const Reg bytes = wasm_v128_load32_zero(p);
    return wasm_f32x4_convert_i32x4(
        wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(bytes)));
  }
  // Round to nearest even; a NaN is made quiet and keeps its upper bits.
  static void StoreBF16(uint16_t* p, Reg v) {
    const Reg upper = wasm_u32x4_shr(v, 16);
    const Reg odd = wasm_v128_and(upper, wasm_i32x4_const_splat(1));
    const Reg rounded =
        wasm_u32x4_shr(wasm_i32x4_add(wasm_i32x4_add(v, wasm_i32x4_const_splat(0x7fff)), odd), 16);
    const Reg quiet = wasm_v128_or(upper, wasm_i32x4_const_splat(0x40));
    const Reg wide = wasm_v128_bitselect(rounded, quiet, wasm_f32x4_eq(v, v));
    wasm_v128_store64_lane(p, wasm_u16x8_narrow_i32x4(wide, wide), 0);
  }
  // No instruction rounds to half, and integer code for four lanes is no shorter than for one.
  static void StoreF16(uint16_t* p, Reg v) {
    p[0] = F16FromF32(wasm_f32x4_extract_lane(v, 0));
    p[1] = F16FromF32(wasm_f32x4_extract_lane(v, 1));
    p[2] = F16FromF32(wasm_f32x4_extract_lane(v, 2));
    p[3] = F16FromF32(wasm_f32x4_extract_lane(v, 3));
  }

  static constexpr SpreadTable4 kSpread = MakeSpreadTable4();
  using Lanes = v128_t;  // which bytes of a vector; beyond it where none
  static Lanes LanesOf(uint32_t bits) { return wasm_v128_load(kSpread.control[bits]); }
  template <int i>
  static Lanes Piece(const uint64_t* word) {
    return LanesOf(PieceBits<Simd128, i>(*word));
  }
  static Reg Spread(Reg v, Lanes lanes) { return wasm_i8x16_swizzle(v, lanes); }
  static Reg FmaKept(Reg a, Reg b, Reg c, Lanes lanes) {
    return Fma(a, wasm_v128_andnot(b, wasm_i32x4_shr(lanes, 31)), c);
  }
  static int CountKept(uint32_t bits) { return __builtin_popcount(bits); }

  static void Transpose(Reg* r) {
    const Reg a = wasm_i32x4_shuffle(r[0], r[1], 0, 4, 1, 5);
    const Reg b = wasm_i32x4_shuffle(r[0], r[1], 2, 6, 3, 7);
    const Reg c = wasm_i32x4_shuffle(r[2], r[3], 0, 4, 1, 5);
    const Reg d = wasm_i32x4_shuffle(r[2], r[3], 2, 6, 3, 7);
    r[0] = wasm_i64x2_shuffle(a, c, 0, 2);
    r[1] = wasm_i64x2_shuffle(a, c, 1, 3);
    r[2] = wasm_i64x2_shuffle(b, d, 0, 2);
    r[3] = wasm_i64x2_shuffle(b, d, 1, 3);
  }
};

}  // namespace
}  // namespace sparsekern
