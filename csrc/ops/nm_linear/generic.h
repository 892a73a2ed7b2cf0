// SPDX-License-Identifier: Apache-2.0
// The loops of nm_linear, over a vector type V (base/simd/conversion.h) that has besides
// Word, kLanes 32-bit integers; LoadWord(bytes); Shift<b>(word), right; Pick<W>(x, word): lane by
// lane the element of a window of W floats that the low bits of the word name; and
// StoreColumns<W>(out, word, first): those bits plus `first`, a byte a lane.
//
// Decode is memory-bound: each weight is read once, 16 or 8 bits of it with 2 to 8 bits of index,
// and used once a row of x. A lane is an output, so there is no horizontal sum; the field of a lane
// is the control of a permute of the window, which sits in one or two registers, so nothing is
// unpacked: per step one load of x, one permute, one multiply-add, one shift of the word.
#pragma once

#include <cstdint>

#include "base/simd/batch.h"
#include "base/simd/conversion.h"
#include "ops/nm_linear/kernels.h"

namespace sparsekern {

template <int W>
static constexpr int kFieldBits = W == 4    ? 2
                                  : W == 16 ? 4
                                            : 8;

// M rows of x; S steps a window, 0: any number. Sums alternate between sets where one would wait
// for its own multiply-adds.
template <typename V, DType D, int W, int S, int M>
static inline void NmDecodeRows(const NmPanel& panel, const float* x, int64_t x_stride, float* y,
                                int64_t y_stride) {
  constexpr int kRegs = kNmLanes / V::kLanes;
  constexpr int kFields = 32 / kFieldBits<W>;
  constexpr int kSets = M * kRegs >= 4 ? 1 : 2;
  constexpr int64_t kStepBytes = kBytesOf<D> * kNmLanes;
  constexpr int kAhead = 4096 / kStepBytes;  // steps; see PrefetchStep of csr
  typename V::Reg sum[kSets][M][kRegs];
  for (int set = 0; set < kSets; ++set) {
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < kRegs; ++v) sum[set][m][v] = V::Zero();
    }
  }
  const uint8_t* values = panel.values;
  const uint8_t* words = panel.words;
  int in_window = 0;
  typename V::Word word[kRegs];
  const auto step = [&](int f) __attribute__((always_inline)) {
    if (f * kStepBytes % 64 == 0) __builtin_prefetch(values + kAhead * kStepBytes);
    const float* window = x;
    if constexpr (S != 0) window += f / S * W;
    for (int v = 0; v < kRegs; ++v) {
      const typename V::Reg w = LoadAs<V, D>(values, v * V::kLanes);
      for (int m = 0; m < M; ++m) {
        typename V::Reg& s = sum[f % kSets][m][v];
        s = V::Fma(V::template Pick<W>(window + m * x_stride, word[v]), w, s);
      }
      word[v] = V::template Shift<kFieldBits<W>>(word[v]);
    }
    values += kStepBytes;
    if constexpr (S == 0) {
      ++in_window;
      x += in_window == panel.steps_per_window ? W : 0;
      in_window = in_window == panel.steps_per_window ? 0 : in_window;
    }
  };
  const auto load = [&]() __attribute__((always_inline)) {
    for (int v = 0; v < kRegs; ++v) word[v] = V::LoadWord(words + 4 * v * V::kLanes);
    words += 4 * kNmLanes;
    __builtin_prefetch(words + 4096 * 4 / kStepBytes);
  };
  const int64_t whole = panel.steps / kFields;
  for (int64_t q = 0; q < whole; ++q) {
    load();
#pragma GCC unroll 16
    for (int f = 0; f < kFields; ++f) step(f);
    if constexpr (S != 0) x += kFields / S * W;
  }
  const int rest = static_cast<int>(panel.steps % kFields);
  if (rest != 0) {
    load();
    for (int f = 0; f < rest; ++f) step(f);
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kRegs; ++v) {
      typename V::Reg total = sum[0][m][v];
      for (int set = 1; set < kSets; ++set) total = V::Add(total, sum[set][m][v]);
      V::Store(y + m * y_stride + v * V::kLanes, total);
    }
  }
}

template <typename V, DType D, int W, int S>
static inline void NmDecodeAs(const NmPanel& panel, const float* x, int64_t x_stride, int x_rows,
                              float* y, int64_t y_stride) {
  int m = 0;
  for (; m + 4 <= x_rows; m += 4) {
    NmDecodeRows<V, D, W, S, 4>(panel, x + m * x_stride, x_stride, y + m * y_stride, y_stride);
  }
  for (; m + 2 <= x_rows; m += 2) {
    NmDecodeRows<V, D, W, S, 2>(panel, x + m * x_stride, x_stride, y + m * y_stride, y_stride);
  }
  if (m < x_rows)
    NmDecodeRows<V, D, W, S, 1>(panel, x + m * x_stride, x_stride, y + m * y_stride, y_stride);
}

template <typename V, DType D, int W>
static void NmDecode(const NmPanel& panel, const float* x, int64_t x_stride, int x_rows, float* y,
                     int64_t y_stride) {
  switch (panel.steps_per_window) {
    case 1: return NmDecodeAs<V, D, W, 1>(panel, x, x_stride, x_rows, y, y_stride);
    case 2: return NmDecodeAs<V, D, W, 2>(panel, x, x_stride, x_rows, y, y_stride);
    default: return NmDecodeAs<V, D, W, 0>(panel, x, x_stride, x_rows, y, y_stride);
  }
}

template <typename V, int W>
static void NmColumns(const uint8_t* words, int field, int64_t steps, int steps_per_window,
                      uint8_t* index) {
  constexpr int kFields = 32 / kFieldBits<W>;
  int in_window = 0, first = 0;
  for (int64_t j = 0; j < steps; field = 0) {
    typename V::Word word[kNmLanes / V::kLanes];
    for (int v = 0; v < kNmLanes / V::kLanes; ++v) {
      word[v] = V::LoadWord(words + 4 * v * V::kLanes);
      for (int skip = 0; skip < field; ++skip) {
        word[v] = V::template Shift<kFieldBits<W>>(word[v]);
      }
    }
    words += 4 * kNmLanes;
    for (; field < kFields && j < steps; ++field, ++j) {
      for (int v = 0; v < kNmLanes / V::kLanes; ++v) {
        V::template StoreColumns<W>(index + v * V::kLanes, word[v], first);
        word[v] = V::template Shift<kFieldBits<W>>(word[v]);
      }
      index += kNmLanes;
      if (++in_window == steps_per_window) {
        in_window = 0;
        first += W;
      }
    }
  }
}

// All lanes have equally many steps, so several go together: their sums hide each other's latency,
// and a word of indices serves them all, which leaves the load ports to x.
template <typename V, int U>
static void NmBatch(const float* values, const uint8_t* index, int steps, const float* x, float* y,
                    bool first) {
  constexpr int kWidth = U * V::kLanes;
  constexpr int kTogether = LanesTogether<V>(U);
  const auto put = [first]<int P>(typename V::Reg(&sum)[1][P], float* to)
                       __attribute__((always_inline)) {
                         for (int u = 0; u < P; ++u) {
                           if (!first) sum[0][u] = V::Add(V::Load(to + u * V::kLanes), sum[0][u]);
                           V::Store(to + u * V::kLanes, sum[0][u]);
                         }
                       };
  for (int l = 0; l < kNmLanes; l += kTogether) {
    if constexpr (kTogether > 1) {
      int all[kTogether];
      for (int& count : all) count = steps;
      typename V::Reg sum[kTogether][1][U];
      BatchSumsTogether<V, 1, U, kTogether>(values + l, index + l, all, x, sum);
      for (int p = 0; p < kTogether; ++p) {
        put.template operator()<U>(sum[p], y + (l + p) * kWidth);
      }
    } else {
      constexpr int kPart = U < V::kAccumulators ? U : V::kAccumulators;
      const auto part = [&]<int P>(int at) __attribute__((always_inline)) {
        typename V::Reg sum[1][P];
        BatchSums<V, 1, P>(values + l, index + l, steps, x + at, kWidth, sum);
        put.template operator()<P>(sum, y + l * kWidth + at);
      };
      for (int at = 0; at < U / kPart * kPart * V::kLanes; at += kPart * V::kLanes) {
        part.template operator()<kPart>(at);
      }
      if constexpr (U % kPart != 0) {
        part.template operator()<U % kPart>(U / kPart * kPart * V::kLanes);
      }
    }
  }
}

template <typename V>
static constexpr NmKernels MakeNmKernels(const TileKernels& tiles, int max_decode_rows) {
  return NmKernels{
      tiles,
      max_decode_rows,
      {{NmDecode<V, DType::kF32, 4>, NmDecode<V, DType::kF32, 16>, NmDecode<V, DType::kF32, 32>},
       {NmDecode<V, DType::kBF16, 4>, NmDecode<V, DType::kBF16, 16>, NmDecode<V, DType::kBF16, 32>},
       {NmDecode<V, DType::kF16, 4>, NmDecode<V, DType::kF16, 16>, NmDecode<V, DType::kF16, 32>},
       {NmDecode<V, DType::kI8, 4>, NmDecode<V, DType::kI8, 16>, NmDecode<V, DType::kI8, 32>}},
      {NmColumns<V, 4>, NmColumns<V, 16>, NmColumns<V, 32>},
      {NmBatch<V, V::kBatchVectors[0]>, NmBatch<V, V::kBatchVectors[1]>,
       NmBatch<V, V::kBatchVectors[2]>, NmBatch<V, V::kBatchVectors[3]>,
       NmBatch<V, V::kBatchVectors[4]>}};
}

}  // namespace sparsekern
