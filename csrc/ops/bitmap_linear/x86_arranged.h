// SPDX-License-Identifier: Apache-2.0
// Decode of bitmap_linear with AVX-512 and x in the order that whole words expand to. The rest, and
// x that is not finite, is as with AVX-512.
#pragma once

#include "base/simd/vector_x86_avx512ordered.h"
#include "ops/bitmap_linear/generic.h"

namespace sparsekern {
namespace {

template <DType D>
bool ArrangeRow(float* x, int64_t words) {
  using V = Avx512Ordered;
  bool plain = true;
  for (int64_t i = 0; plain && i < words * kBitmapWord; i += kBitmapWord) {
    for (int v = 0; v < kBitmapWord; v += V::kLanes) {
      plain = plain && V::AllWithin(V::Load(x + i + v), 0x1p64f);
    }
    V::Arrange<D>(x + i);
  }
  return plain;
}

// With V's decode of values of the dtypes D, for up to `max_rows` rows of x.
template <typename V, DType... D>
constexpr BitmapKernels WithArranged(int max_rows) {
  BitmapKernels kernels = MakeBitmapKernels<Avx512>(kTileKernels_x86_avx512, 16);
  kernels.arranged.max_rows = max_rows;
  ((kernels.arranged.arrange[static_cast<int>(D)] = ArrangeRow<D>,
    kernels.arranged.decode[static_cast<int>(D)] = BitmapDecode<V, D>,
    kernels.arranged.few[static_cast<int>(D)] = BitmapDecodeFew<V, D>),
   ...);
  return kernels;
}

}  // namespace
}  // namespace sparsekern
