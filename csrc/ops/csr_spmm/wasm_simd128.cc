// SPDX-License-Identifier: Apache-2.0
// csr kernels for WebAssembly's simd128.
#include "base/simd/vector_wasm_simd128.h"
#include "ops/csr_spmm/generic.h"

namespace sparsekern {
namespace {

struct CsrSimd128 : Simd128 {
  struct Columns {
    const float* x;
    explicit Columns(const float* block) : x(block) {}
    // Masked: an index of a corrupt structure stays inside the block.
    Reg Look(const uint8_t* index) const {
      constexpr int kIn = kCsrBlockCols - 1;
      Reg v = wasm_v128_load32_zero(x + (index[0] & kIn));
      v = wasm_v128_load32_lane(x + (index[1] & kIn), v, 1);
      v = wasm_v128_load32_lane(x + (index[2] & kIn), v, 2);
      return wasm_v128_load32_lane(x + (index[3] & kIn), v, 3);
    }
  };
};

}  // namespace

extern const CsrKernels kCsrKernels_wasm_simd128 =
    MakeCsrKernels<CsrSimd128>(kTileKernels_wasm_simd128, 2);

}  // namespace sparsekern
