// SPDX-License-Identifier: Apache-2.0
// nm_linear for WebAssembly: a swizzle of a window of four floats; lane loads from wider ones.
#include "base/simd/vector_wasm_simd128.h"
#include "ops/nm_linear/generic.h"

namespace sparsekern {
namespace {

struct NmSimd128 : Simd128 {
  using Word = v128_t;
  static Word LoadWord(const uint8_t* p) { return wasm_v128_load(p); }
  template <int b>
  static Word Shift(Word w) {
    return wasm_u32x4_shr(w, b);
  }
  template <int W>
  static Reg Pick(const float* x, Word w) {
    const v128_t field = wasm_v128_and(w, wasm_i32x4_const_splat(W - 1));
    if constexpr (W == 4) {
      const v128_t control =
          wasm_i32x4_add(wasm_i32x4_mul(field, wasm_i32x4_const_splat(0x04040404)),
                         wasm_i32x4_const_splat(0x03020100));
      return wasm_i8x16_swizzle(wasm_v128_load(x), control);
    } else {
      Reg v = wasm_v128_load32_zero(x + wasm_i32x4_extract_lane(field, 0));
      v = wasm_v128_load32_lane(x + wasm_i32x4_extract_lane(field, 1), v, 1);
      v = wasm_v128_load32_lane(x + wasm_i32x4_extract_lane(field, 2), v, 2);
      return wasm_v128_load32_lane(x + wasm_i32x4_extract_lane(field, 3), v, 3);
    }
  }
  template <int W>
  static void StoreColumns(uint8_t* p, Word w, int first) {
    const v128_t column =
        wasm_i32x4_add(wasm_v128_and(w, wasm_i32x4_const_splat(W - 1)), wasm_i32x4_splat(first));
    const v128_t half = wasm_i16x8_narrow_i32x4(column, column);
    wasm_v128_store32_lane(p, wasm_u8x16_narrow_i16x8(half, half), 0);
  }
};

}  // namespace

extern const NmKernels kNmKernels_wasm_simd128 =
    MakeNmKernels<NmSimd128>(kTileKernels_wasm_simd128, 2);

}  // namespace sparsekern
