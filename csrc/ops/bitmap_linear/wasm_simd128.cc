// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for WebAssembly simd128.
#include "base/simd/vector_wasm_simd128.h"
#include "ops/bitmap_linear/generic.h"

namespace sparsekern {

extern const BitmapKernels kBitmapKernels_wasm_simd128 =
    MakeBitmapKernels<Simd128>(kTileKernels_wasm_simd128, 2);

}  // namespace sparsekern
