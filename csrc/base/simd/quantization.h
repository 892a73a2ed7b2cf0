// SPDX-License-Identifier: Apache-2.0
// Rows of x to multiples of max |row| / 127, over a vector type V.
#pragma once

#include "base/simd/transposition.h"

namespace sparsekern {

// Largest magnitudes and whether anything is not finite, lane by lane -> what to divide and to
// multiply by.
template <typename V>
static inline void Int8Scales(typename V::Reg most, typename V::Reg odd, float* scale,
                              float* inverse) {
  float finite[V::kLanes];
  V::Store(scale, most);
  V::Store(finite, odd);
  for (int l = 0; l < V::kLanes; ++l) {
    const float largest = scale[l];
    const bool nothing = !(largest > 0x1p-100f);  // 127 / largest would overflow: as good as zeros
    scale[l] = finite[l] != 0.0f ? __builtin_nanf("") : nothing ? 0.0f : largest / 127.0f;
    inverse[l] = nothing ? 0.0f : 127.0f / largest;
  }
}

// `odd` stays 0 as long as every v is finite.
template <typename V>
static inline void Int8Seen(typename V::Reg v, typename V::Reg* most, typename V::Reg* odd) {
  *most = V::Max(V::Max(v, V::Mul(v, V::Set1(-1.0f))), *most);
  *odd = V::Fma(v, V::Zero(), *odd);
}

template <typename V>
static float QuantizeRow(float* row, int64_t n) {
  typename V::Reg most = V::Zero(), odd = V::Zero();
  for (int64_t i = 0; i < n; i += V::kLanes) {
    Int8Seen<V>(LoadFirst<V>(row + i, n - i), &most, &odd);
  }
  float lanes[V::kLanes], odds[V::kLanes], scale[V::kLanes], inverse[V::kLanes];
  V::Store(lanes, most);
  V::Store(odds, odd);
  for (int l = 1; l < V::kLanes; ++l) {
    lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
    odds[0] += odds[l];
  }
  Int8Scales<V>(V::Set1(lanes[0]), V::Set1(odds[0]), scale, inverse);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const typename V::Reg v = V::Mul(LoadFirst<V>(row + i, n - i), V::Set1(inverse[0]));
    StoreFirst<V>(row + i, V::Round(v), n - i < V::kLanes ? static_cast<int>(n - i) : V::kLanes);
  }
  return scale[0];
}

template <typename V>
static void TileSteps(const float* x, int64_t cols, int width, float* scale, float* inverse) {
  for (int m = 0; m < width; m += V::kLanes) {
    typename V::Reg most = V::Zero(), odd = V::Zero();
    for (int64_t k = 0; k < cols; ++k) Int8Seen<V>(V::Load(x + k * width + m), &most, &odd);
    Int8Scales<V>(most, odd, scale + m, inverse + m);
  }
}

template <typename V>
static void QuantizeTile(float* x, int64_t cols, int width, const float* inverse) {
  for (int m = 0; m < width; m += V::kLanes) {
    const typename V::Reg by = V::Load(inverse + m);
    for (int64_t k = 0; k < cols; ++k) {
      float* at = x + k * width + m;
      V::Store(at, V::Round(V::Mul(V::Load(at), by)));
    }
  }
}

template <typename V>
static void Rescale(float* y, int64_t rows, int width, const float* scale) {
  for (int m = 0; m < width; m += V::kLanes) {
    const typename V::Reg by = V::Load(scale + m);
    for (int64_t r = 0; r < rows; ++r) {
      V::Store(y + r * width + m, V::Mul(V::Load(y + r * width + m), by));
    }
  }
}

}  // namespace sparsekern
