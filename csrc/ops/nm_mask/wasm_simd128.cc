// SPDX-License-Identifier: Apache-2.0
// nm_mask for WebAssembly's simd128.
#include <wasm_simd128.h>

#include "ops/nm_mask/make_kernels.h"

namespace sparsekern {
namespace {

struct Simd128 {
  static constexpr int kLanes = 4;
  using Reg = v128_t;
  using Mask = v128_t;  // -1 where set
  static Reg Set1(int32_t v) { return wasm_i32x4_splat(v); }
  static Reg And(Reg a, Reg b) { return wasm_v128_and(a, b); }
  static Reg Xor(Reg a, Reg b) { return wasm_v128_xor(a, b); }
  static Reg Sub(Reg a, Reg b) { return wasm_i32x4_sub(a, b); }
  static Reg Sign(Reg v) { return wasm_i32x4_shr(v, 31); }
  static Reg Load(const int32_t* p) { return wasm_v128_load(p); }
  static Reg LoadHalf(const uint16_t* p) { return wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16); }
  static Reg LoadQuads(const int32_t* p, int64_t) { return Load(p); }
  static Reg LoadHalfQuads(const uint16_t* p, int64_t) { return LoadHalf(p); }
  static Reg Lo32(Reg a, Reg b) { return wasm_i32x4_shuffle(a, b, 0, 4, 1, 5); }
  static Reg Hi32(Reg a, Reg b) { return wasm_i32x4_shuffle(a, b, 2, 6, 3, 7); }
  static Reg Lo64(Reg a, Reg b) { return wasm_i64x2_shuffle(a, b, 0, 2); }
  static Reg Hi64(Reg a, Reg b) { return wasm_i64x2_shuffle(a, b, 1, 3); }
  static Mask Greater(Reg a, Reg b) { return wasm_i32x4_gt(a, b); }
  static Reg Where(Mask mask, Reg a, Reg b) { return wasm_v128_bitselect(a, b, mask); }
  static Reg Raise(Reg rank, Mask mask) { return wasm_i32x4_sub(rank, mask); }
  static Reg Lower(Reg rank, Mask mask) { return wasm_i32x4_add(rank, mask); }
  static Reg Mark(Reg word, Mask mask, Reg bits) {
    return wasm_v128_or(word, wasm_v128_and(mask, bits));
  }
  static void Store(int32_t* p, Reg v) { wasm_v128_store(p, v); }
  static Reg Or(Reg a, Reg b) { return wasm_v128_or(a, b); }
  static Reg ShiftLeft(Reg v, int count) { return wasm_i32x4_shl(v, static_cast<uint32_t>(count)); }
  static Mask Equal(Reg a, Reg b) { return wasm_i32x4_eq(a, b); }
  static Mask Any(Reg a, Reg b) { return wasm_i32x4_ne(wasm_v128_and(a, b), Set1(0)); }
  static Mask Flags(const uint8_t* p) {
    const v128_t v =
        wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p)));
    return wasm_i32x4_ne(v, Set1(0));
  }
  static bool None(Mask mask) { return !wasm_v128_any_true(mask); }
  static void StoreFlags(uint8_t* p, Mask mask) {
    const v128_t half = wasm_i16x8_narrow_i32x4(mask, mask);
    const v128_t flags = wasm_v128_and(wasm_i8x16_narrow_i16x8(half, half), wasm_i8x16_splat(1));
    wasm_v128_store32_lane(p, flags, 0);
  }
  static void StoreGrouped(uint8_t* p, Reg v) { wasm_v128_store(p, v); }
  static void StoreQuads(uint8_t* p, int64_t, Reg v) { wasm_v128_store(p, v); }
};

}  // namespace

extern const NmMaskKernels kNmMaskKernels_wasm_simd128 =
    MakeNmMaskKernels<Simd128>("wasm_simd128", kWasmSimd128);

}  // namespace sparsekern
