// SPDX-License-Identifier: Apache-2.0
// bitmap_kv_append for WebAssembly's simd128.
#include "ops/bitmap_kv_append/generic.h"

namespace sparsekern {

extern const BitmapKvAppendKernels kBitmapKvAppendKernels_wasm_simd128 =
    MakeBitmapKvAppendKernels("wasm_simd128");

}  // namespace sparsekern
