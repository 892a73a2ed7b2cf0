// SPDX-License-Identifier: Apache-2.0
// The product of 16 lanes of weights, each with its own columns, with a tile of x, over a vector
// type V. One broadcast and width/kLanes multiply-adds for one kept weight, whose x operands come
// straight from the first-level cache. The limit is the load ports: (U + 2)/2 cycles for U vectors,
// that is two thirds of the FMA peak for U = 4.
#pragma once

#include "base/simd/activations.h"
#include "base/simd/transposition.h"

namespace sparsekern {

// One lane: R rows of weights times U vectors of x. Short products keep S sets of sums on
// alternating steps, to hide the multiply-add's latency. The sums start at 0 and meet y at the end:
// y comes from the second-level cache, and this way nothing waits for it. Weights and columns of a
// lane are kStride elements apart.
template <typename V, int R, int U, int kStride = kSliceLanes>
static inline __attribute__((always_inline)) void BatchSums(const float* values,
                                                            const uint8_t* index, int steps,
                                                            const float* x, int width,
                                                            typename V::Reg (&total)[R][U]) {
  constexpr int S = R * U >= 4 ? 1 : 2;
  typename V::Reg sum[S][R][U];
  for (int set = 0; set < S; ++set) {
    for (int i = 0; i < R; ++i) {
      for (int u = 0; u < U; ++u) sum[set][i][u] = V::Zero();
    }
  }
  const auto step = [&](int set) __attribute__((always_inline)) {
    const float* xk = x + static_cast<int64_t>(index[set * kStride]) * width;
    // One address per step: with an index register in each operand the multiply-adds take two
    // slots.
    asm("" : "+r"(xk));
    for (int i = 0; i < R; ++i) {
      const typename V::Reg w = V::Set1(values[(set * R + i) * kStride]);
      for (int u = 0; u < U; ++u) {
        sum[set][i][u] = V::Fma(w, V::Load(xk + u * V::kLanes), sum[set][i][u]);
      }
    }
  };
  int j = 0;
#if defined(__wasm_simd128__)
  // Else V8 unrolls by two itself, and spills sums in the first copy (8 % slower on long rows).
#pragma clang loop unroll_count(4)
#endif
  for (; j + S <= steps; j += S) {
    for (int set = 0; set < S; ++set) step(set);
    values += S * R * kStride;
    index += S * kStride;
  }
  if (S > 1 && j < steps) step(0);
  for (int i = 0; i < R; ++i) {
    for (int u = 0; u < U; ++u) {
      total[i][u] = sum[0][i][u];
      for (int set = 1; set < S; ++set) total[i][u] = V::Add(total[i][u], sum[set][i][u]);
    }
  }
}

// How many neighbouring lanes go together: as many as have room for their sums in registers.
template <typename V>
static constexpr int LanesTogether(int sums_of_a_lane) {
  const int fit = V::kAccumulators / sums_of_a_lane;
  return fit >= 8 ? 8 : fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

// P neighbouring lanes at a time: their sums hide each other's latency, one word brings the index
// of each, and a narrow lane does not pay for a loop of its own. Lanes of different lengths, 64
// rows of x, AVX-512: 8 % at 70 and 80 %, 4 % at 90 %, nothing at 95 %; 16 rows of x: 30 %. Equal
// ones: 18 to 29 %.
template <typename V, int R, int U, int P>
static inline __attribute__((always_inline)) void BatchSumsTogether(
    const float* values, const uint8_t* index, const int* steps, const float* x,
    typename V::Reg (&total)[P][R][U]) {
  constexpr int64_t kWidth = U * V::kLanes;
  static_assert(P == 2 || P == 4 || P == 8);
  for (int p = 0; p < P; ++p) {
    for (int i = 0; i < R; ++i) {
      for (int u = 0; u < U; ++u) total[p][i][u] = V::Zero();
    }
  }
  const auto add = [&](int p, uint8_t k) __attribute__((always_inline)) {
    const float* xk = x + k * kWidth;
    asm("" : "+r"(xk));  // as in BatchSums: 5 %
    for (int i = 0; i < R; ++i) {
      const typename V::Reg w = V::Set1(values[i * kSliceLanes + p]);
      for (int u = 0; u < U; ++u) {
        total[p][i][u] = V::Fma(w, V::Load(xk + u * V::kLanes), total[p][i][u]);
      }
    }
  };
  int j = 0;
  for (; j < steps[P - 1]; ++j) {  // sorted: the last lane is the shortest
    uint64_t word = 0;
    std::memcpy(&word, index, P);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) add(p, static_cast<uint8_t>(word >> 8 * p));
    values += R * kSliceLanes;
    index += kSliceLanes;
  }
  const float* const rest = values;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    values = rest;
    for (int more = j; more < steps[p]; ++more) {
      add(p, index[(more - j) * kSliceLanes + p]);
      values += R * kSliceLanes;
    }
  }
}

// Finished sums of rows `row`... of a panel, vectors from pixel `at` on, to where they belong. What
// is no clamp follows in a second pass, while the row is in the first-level cache.
template <typename V, int R, int U>
static inline __attribute__((always_inline)) void FinishLane(const typename V::Reg (&total)[R][U],
                                                             const PanelOutput& output, Clamp clamp,
                                                             int64_t row, int at) {
  const typename V::Reg low = V::Set1(clamp.low), high = V::Set1(clamp.high);
  const int pixels = output.pixels - at;
  for (int i = 0; i < R && row + i < output.rows; ++i) {
    float* y = output.y + (row + i) * output.stride + at;
    const typename V::Reg s = V::Set1(output.scale != nullptr ? output.scale[row + i] : 1.0f);
    const typename V::Reg b = V::Set1(output.bias != nullptr ? output.bias[row + i] : 0.0f);
    typename V::Reg v[U];
    for (int u = 0; u < U; ++u) {
      v[u] = V::Min(high, V::Max(low, V::Add(V::Mul(total[i][u], s), b)));
    }
    if (pixels >= U * V::kLanes) {
      for (int u = 0; u < U; ++u) V::Store(y + u * V::kLanes, v[u]);
    } else {
      for (int u = 0; u < U; ++u) StoreFirst<V>(y + u * V::kLanes, v[u], pixels - u * V::kLanes);
    }
    if (!IsClamp(output.activation) && pixels > 0) {
      FinishRow<V>(y, pixels < U * V::kLanes ? pixels : U * V::kLanes, nullptr, nullptr,
                   output.activation);
    }
  }
}

template <typename V, int R, int U, bool kFirst, bool kLast>
static void BatchTileAs(const WeightTile& tile, const float* x, float* y,
                        const PanelOutput* output) {
  constexpr int kWidth = U * V::kLanes;
  // Fewer vectors at a time where R rows of the full width would not fit in registers.
  constexpr int kFit = V::kAccumulators / R;
  constexpr int kPart = U < kFit ? U : kFit;
  constexpr int kWhole = U / kPart * kPart;
  // A wide lane's results go to a row of their own at once; four such rows in turn cost a
  // convolution 8 to 20 %.
  constexpr int kFitting = LanesTogether<V>(R * U);
  constexpr int kTogether = kLast && kFitting < 8 ? 1 : kFitting;
  const Clamp clamp = kLast ? ClampOf(output->activation) : Clamp{};
  constexpr bool kEveryGroup = kFirst || kLast;  // also those with nothing kept here
  const float* values = static_cast<const float*>(tile.values);
  const uint8_t* index = tile.index;
  int64_t left = tile.steps;
  for (int s = 0; s < tile.groups; s += kSliceLanes) {
    const uint8_t* count = tile.count + s;
    const uint8_t* order = tile.order + s;
    const int slice_steps = count[0] < left ? count[0] : static_cast<int>(left);
    if (slice_steps == 0 && !kEveryGroup) break;  // sorted: nothing kept from here on
    left -= slice_steps;
    // Adds what y holds, unless this tile is the panel's first, and stores.
    const auto put = [&]<int P>(int l, int at,
                                typename V::Reg(&total)[R][P]) __attribute__((always_inline)) {
      const int64_t row = static_cast<int64_t>(order[l]) * R;
      float* sums = y + row * kWidth + at;
      if constexpr (!kFirst) {
        for (int i = 0; i < R; ++i) {
          for (int u = 0; u < P; ++u) {
            total[i][u] = V::Add(V::Load(sums + i * kWidth + u * V::kLanes), total[i][u]);
          }
        }
      }
      if constexpr (kLast) {
        FinishLane<V, R, P>(total, *output, clamp, row, at);
      } else {
        for (int i = 0; i < R; ++i) {
          for (int u = 0; u < P; ++u) V::Store(sums + i * kWidth + u * V::kLanes, total[i][u]);
        }
      }
    };
    for (int l = 0; l < kSliceLanes; l += kTogether) {
      int steps[kTogether];
      for (int p = 0; p < kTogether; ++p) {
        steps[p] = count[l + p] < slice_steps ? count[l + p] : slice_steps;
      }
      if (steps[0] == 0 && !kEveryGroup) break;
      if constexpr (kTogether > 1) {
        typename V::Reg total[kTogether][R][U];
        BatchSumsTogether<V, R, U, kTogether>(values + l, index + l, steps, x, total);
        for (int p = 0; p < kTogether; ++p) put.template operator()<U>(l + p, 0, total[p]);
      } else {
        const auto part = [&]<int P>(int at) __attribute__((always_inline)) {
          typename V::Reg total[R][P];
          BatchSums<V, R, P>(values + l, index + l, steps[0], x + at, kWidth, total);
          put.template operator()<P>(l, at, total);
        };
        for (int at = 0; at < kWhole * V::kLanes; at += kPart * V::kLanes) {
          part.template operator()<kPart>(at);
        }
        if constexpr (kWhole < U) part.template operator()<U - kWhole>(kWhole * V::kLanes);
      }
    }
    values += static_cast<int64_t>(slice_steps) * R * kSliceLanes;
    index += static_cast<int64_t>(slice_steps) * kSliceLanes;
  }
}

template <typename V, int R, int U>
static void BatchTile(const WeightTile& tile, const float* x, float* y, bool first,
                      const PanelOutput* output) {
  // Constants, not arguments: 3 to 5 % of a whole convolution.
  if (output == nullptr) {
    first ? BatchTileAs<V, R, U, true, false>(tile, x, y, output)
          : BatchTileAs<V, R, U, false, false>(tile, x, y, output);
  } else {
    first ? BatchTileAs<V, R, U, true, true>(tile, x, y, output)
          : BatchTileAs<V, R, U, false, true>(tile, x, y, output);
  }
}

}  // namespace sparsekern
