// SPDX-License-Identifier: Apache-2.0
// bitmap_attention for AVX-512 with VBMI2: channels are in the order that whole words expand to.
#include "base/simd/vector_x86_avx512vbmi2.h"
#include "ops/bitmap_attention/generic.h"

namespace sparsekern {
namespace {

// What lies behind the last whole word stays where it is: pieces of 16 channels keep the order.
void Arrange(float* row, int head_dim) {
  for (int c = 0; c + kWordColumns <= head_dim; c += kWordColumns) {
    Avx512Vbmi2::Arrange<DType::kBF16>(row + c);
  }
}
void Restore(float* row, int head_dim) {
  for (int c = 0; c + kWordColumns <= head_dim; c += kWordColumns) Avx512Vbmi2::Restore(row + c);
}

constexpr BitmapAttentionKernels WithOrder() {
  BitmapAttentionKernels kernels = MakeBitmapAttentionKernels<Avx512Vbmi2>(kTileKernels_x86_avx512);
  kernels.arrange[static_cast<int>(DType::kBF16)] = Arrange;
  kernels.restore[static_cast<int>(DType::kBF16)] = Restore;
  return kernels;
}

}  // namespace

extern const BitmapAttentionKernels kBitmapAttentionKernels_x86_avx512vbmi2 = WithOrder();

}  // namespace sparsekern
