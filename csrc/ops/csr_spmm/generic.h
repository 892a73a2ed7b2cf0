// SPDX-License-Identifier: Apache-2.0
// The csr kernels' loops, written once over a vector type V (base/simd/conversion.h) that has
// besides Columns, the x block of a decode tile, with Look(indices). All of it `static`, for the
// reason given there.
//
// Decode (memory-bound): 5.2 to 5.7 bytes a kept fp32 weight at 70 to 95 %, read once. The batch
// kernels are those of base/simd/batch.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/simd/conversion.h"
#include "ops/csr_spmm/kernels.h"

namespace sparsekern {

// ---- decode ------------------------------------------------------------------------------------

// Asks for the index and the values of the step kAhead further on. Hardware prefetchers fall behind
// a loop of this many instructions a line: 83 -> 99 % of the read bandwidth on a Cascade Lake.
template <DType D, int R>
static inline void PrefetchStep(const uint8_t* values, const uint8_t* index) {
  constexpr int kAhead = 64 / R;
  constexpr int64_t kStepBytes = kBytesOf<D> * R * kCsrLanes;
  __builtin_prefetch(index + kAhead * kCsrLanes);
  for (int64_t i = 0; i < kStepBytes; i += 64) {
    __builtin_prefetch(values + kAhead * kStepBytes + i);
  }
}

// One row of x. A lane is a group of R outputs; sums stay in registers for a whole slice.
template <typename V, DType D, int R>
static inline void DecodeRow(const CsrTile& tile, const typename V::Columns& columns, float* y) {
  constexpr int kRegs = kCsrLanes / V::kLanes;
  const uint8_t* values = static_cast<const uint8_t*>(tile.values);
  const uint8_t* index = tile.index;
  int64_t left = tile.steps;
  for (int s = 0; s < tile.groups; s += kCsrLanes) {
    const uint8_t* count = tile.count + s;
    const int steps = count[0] < left ? count[0] : static_cast<int>(left);
    if (steps == 0) break;  // sorted: nothing kept from here on
    left -= steps;
    typename V::Reg sum[R][kRegs];
    for (int i = 0; i < R; ++i) {
      for (int v = 0; v < kRegs; ++v) sum[i][v] = V::Zero();
    }
    const int full = count[kCsrLanes - 1] < steps ? count[kCsrLanes - 1] : steps;
    int j = 0;
    for (; j < full; ++j) {
      PrefetchStep<D, R>(values, index);
      for (int v = 0; v < kRegs; ++v) {
        const typename V::Reg x = columns.Look(index + v * V::kLanes);
        for (int i = 0; i < R; ++i) {
          sum[i][v] = V::Fma(x, LoadAs<V, D>(values, i * kCsrLanes + v * V::kLanes), sum[i][v]);
        }
      }
      index += kCsrLanes;
      values += kBytesOf<D> * R * kCsrLanes;
    }
    // The last steps, where some lanes have run out: their padding must not meet an infinity in x.
    for (; j < steps; ++j) {
      PrefetchStep<D, R>(values, index);
      for (int v = 0; v < kRegs; ++v) {
        const typename V::Reg x = columns.Look(index + v * V::kLanes);
        const typename V::Mask active = V::Above(count + v * V::kLanes, j);
        for (int i = 0; i < R; ++i) {
          const typename V::Reg more =
              V::Fma(x, LoadAs<V, D>(values, i * kCsrLanes + v * V::kLanes), sum[i][v]);
          sum[i][v] = V::Where(active, more, sum[i][v]);
        }
      }
      index += kCsrLanes;
      values += kBytesOf<D> * R * kCsrLanes;
    }
    const uint8_t* order = tile.order + s;
    for (int i = 0; i < R; ++i) {
      float lane[kCsrLanes];
      for (int v = 0; v < kRegs; ++v) V::Store(lane + v * V::kLanes, sum[i][v]);
      for (int l = 0; l < kCsrLanes; ++l) y[order[l] * R + i] += lane[l];
    }
  }
}

template <typename V, DType D, int R>
static void DecodeTile(const CsrTile& tile, const float* x, int64_t x_stride, int x_rows, float* y,
                       int64_t y_stride) {
  for (int m = 0; m < x_rows; ++m) {
    const typename V::Columns columns(x + m * x_stride);
    DecodeRow<V, D, R>(tile, columns, y + m * y_stride);
  }
}

// ---- gradient of the values --------------------------------------------------------------------

template <typename V, int R>
static void SddmmTile(const CsrTile& tile, const float* grad, const float* x, int width,
                      float* values_grad) {
  const uint8_t* index = tile.index;
  int64_t left = tile.steps;
  for (int s = 0; s < tile.groups; s += kCsrLanes) {
    const uint8_t* count = tile.count + s;
    const int slice_steps = count[0] < left ? count[0] : static_cast<int>(left);
    left -= slice_steps;
    for (int l = 0; l < kCsrLanes; ++l) {
      const int steps = count[l] < slice_steps ? count[l] : slice_steps;
      for (int j = 0; j < steps; ++j) {
        const float* xk = x + static_cast<int64_t>(index[j * kCsrLanes + l]) * width;
        for (int i = 0; i < R; ++i) {
          const float* g = grad + (static_cast<int64_t>(tile.order[s + l]) * R + i) * width;
          typename V::Reg a = V::Zero(), b = V::Zero();
          int m = 0;
          for (; m + 2 * V::kLanes <= width; m += 2 * V::kLanes) {
            a = V::Fma(V::Load(g + m), V::Load(xk + m), a);
            b = V::Fma(V::Load(g + m + V::kLanes), V::Load(xk + m + V::kLanes), b);
          }
          for (; m < width; m += V::kLanes) a = V::Fma(V::Load(g + m), V::Load(xk + m), a);
          float lanes[V::kLanes];
          V::Store(lanes, V::Add(a, b));
          for (int n = V::kLanes / 2; n > 0; n /= 2) {
            for (int e = 0; e < n; ++e) lanes[e] += lanes[e + n];
          }
          values_grad[(static_cast<int64_t>(j) * R + i) * kCsrLanes + l] += lanes[0];
        }
      }
    }
    values_grad += static_cast<int64_t>(slice_steps) * R * kCsrLanes;
    index += static_cast<int64_t>(slice_steps) * kCsrLanes;
  }
}

// ---- the table ---------------------------------------------------------------------------------

template <typename V>
static constexpr CsrKernels MakeCsrKernels(const TileKernels& tiles, int max_decode_rows) {
  return CsrKernels{
      tiles,
      max_decode_rows,
      {{DecodeTile<V, DType::kF32, 1>, DecodeTile<V, DType::kF32, 2>,
        DecodeTile<V, DType::kF32, 4>},
       {DecodeTile<V, DType::kBF16, 1>, DecodeTile<V, DType::kBF16, 2>,
        DecodeTile<V, DType::kBF16, 4>},
       {DecodeTile<V, DType::kF16, 1>, DecodeTile<V, DType::kF16, 2>,
        DecodeTile<V, DType::kF16, 4>},
       {DecodeTile<V, DType::kI8, 1>, DecodeTile<V, DType::kI8, 2>, DecodeTile<V, DType::kI8, 4>}},
      {SddmmTile<V, 1>, SddmmTile<V, 2>, SddmmTile<V, 4>}};
}

}  // namespace sparsekern
