// SPDX-License-Identifier: Apache-2.0
#include "base/simd/make_tile_kernels.h"
#include "base/simd/vector_wasm_simd128.h"

namespace sparsekern {

// 64 rows of x in two passes of eight sums: fewer, longer runs of memory to pack from and store to
// than with 32, which at 90 % of zeros is worth 12 % of a whole MobileNet v1.
extern const TileKernels kTileKernels_wasm_simd128 =
    MakeTileKernels<Simd128>("wasm_simd128", kWasmSimd128);

}  // namespace sparsekern
