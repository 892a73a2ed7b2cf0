// SPDX-License-Identifier: Apache-2.0
// bitmap_linear for AVX-512 with VBMI2: decode with x in the order that whole words expand to, and
// expansion to dense rows. The rest, and x that is not finite, is as with AVX-512.
#include "base/simd/vector_x86_avx512vbmi2.h"
#include "ops/bitmap_linear/generic.h"

namespace sparsekern {
namespace {

template <DType D>
bool Arrange(float* x, int64_t words) {
  bool plain = true;
  for (int64_t i = 0; plain && i < words * kBitmapWord; i += kBitmapWord) {
    for (int v = 0; v < kBitmapWord; v += Avx512Vbmi2::kLanes) {
      plain = plain && Avx512Vbmi2::AllWithin(Avx512Vbmi2::Load(x + i + v), 0x1p64f);
    }
    Avx512Vbmi2::Arrange<D>(x + i);
  }
  return plain;
}

constexpr BitmapKernels WithArranged() {
  using V = Avx512Vbmi2;
  BitmapKernels kernels = MakeBitmapKernels<Avx512>(kTileKernels_x86_avx512, 16);
  kernels.expand = BitmapExpand<V>;
  kernels.arranged = {{nullptr, Arrange<DType::kBF16>, Arrange<DType::kF16>, Arrange<DType::kI8>},
                      {nullptr, BitmapDecode<V, DType::kBF16>, BitmapDecode<V, DType::kF16>,
                       BitmapDecode<V, DType::kI8>},
                      {nullptr, BitmapDecodeFew<V, DType::kBF16>, BitmapDecodeFew<V, DType::kF16>,
                       BitmapDecodeFew<V, DType::kI8>}};
  return kernels;
}

}  // namespace

extern const BitmapKernels kBitmapKernels_x86_avx512vbmi2 = WithArranged();

}  // namespace sparsekern
