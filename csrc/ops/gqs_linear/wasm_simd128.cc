// SPDX-License-Identifier: Apache-2.0
// gqs_linear for WebAssembly: a field is shifted to the top, and back down with its sign.
#include "base/simd/vector_wasm_simd128.h"
#include "ops/gqs_linear/generic.h"

namespace sparsekern {
namespace {

struct GqsSimd128 : Simd128 {
  static constexpr int kMostRows = 4;
  static constexpr bool kGroups = false;
  static constexpr bool kMasks = false;
  using Word = v128_t;
  static Word LoadWord(const uint8_t* p) { return wasm_v128_load(p); }
  template <int b>
  static Reg Code(Word w, int j) {
    const v128_t top = wasm_i32x4_shl(w, static_cast<uint32_t>(32 - b - b * j));
    return wasm_f32x4_convert_i32x4(wasm_i32x4_shr(top, 32 - b));
  }
  static float Sum(Reg v) {
    return (wasm_f32x4_extract_lane(v, 0) + wasm_f32x4_extract_lane(v, 1)) +
           (wasm_f32x4_extract_lane(v, 2) + wasm_f32x4_extract_lane(v, 3));
  }
};

}  // namespace

extern const GqsKernels kGqsKernels_wasm_simd128 =
    MakeGqsKernels<GqsSimd128>(kTileKernels_wasm_simd128, 8);

}  // namespace sparsekern
