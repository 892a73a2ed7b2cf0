// SPDX-License-Identifier: Apache-2.0
// bitmap_attention for WebAssembly's simd128.
#include "base/simd/vector_wasm_simd128.h"
#include "ops/bitmap_attention/generic.h"

namespace sparsekern {
namespace {

struct KvSimd128 : Simd128 {
  static Reg SumRows(const Reg* r) {
    Reg t[4] = {r[0], r[1], r[2], r[3]};
    Transpose(t);
    return Add(Add(t[0], t[1]), Add(t[2], t[3]));
  }
};

}  // namespace

extern const BitmapAttentionKernels kBitmapAttentionKernels_wasm_simd128 =
    MakeBitmapAttentionKernels<KvSimd128>(kTileKernels_wasm_simd128);

}  // namespace sparsekern
