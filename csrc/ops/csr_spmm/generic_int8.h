// SPDX-License-Identifier: Apache-2.0
// Products of int8 values with x in int8, one scale for each row of x: the loops, over a type Q
// that the files of processors with a four-element dot product define. Everything is `static`, and
// Q in an unnamed namespace, for the reason that generic.h gives.
//
// Q offers: kPixels, the bytes of a register; kLanes = kPixels / 4 sums; kOffset, what a code is
// above its number (the dot product of x86 takes unsigned x); Reg; Zero, Set1 (32 bits), Load (of
// kPixels bytes), LoadSums, StoreSums, Add; Interleave(a, b, c, d, out[4]): the codes of four
// columns side by side for each pixel; Dot(sum, codes, weights); StoreCodes(x, inverse, out):
// kPixels codes of round(x * inverse), in the order that makes Interleave's results four runs of
// kLanes pixels; Quad(a, b, c, d, out): 16 lanes of four steps, side by side for each lane.
//
// For four kept weights and 64 pixels AVX-512 takes 4 loads, 8 interleaving shuffles and 4 dot
// products for 256 multiply-adds; fp32 takes 16 multiply-adds with an x operand each. The shuffles
// bound it (8 cycles), and R rows share them.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/csr_spmm/kernels.h"

namespace sparsekern {

// A slice's indices and values, four steps to a 32-bit word; steps that do not exist are zeros.
template <int R>
struct Int8Slice {
  enum : int { kMaxQuads = 64 };  // counts are bytes
  uint32_t index[kMaxQuads][kCsrLanes];
  uint32_t values[kMaxQuads][R][kCsrLanes];
  int32_t excess[R][kCsrLanes];  // what the offset of the codes adds to a sum
};

template <typename Q, int R>
static inline void Arrange(const uint8_t* values, const uint8_t* index, int steps,
                           Int8Slice<R>* slice) {
  static constexpr uint8_t kZeros[kCsrLanes] = {};
  for (int j = 0; j < steps; j += 4) {
    const uint8_t* at[4];
    for (int t = 0; t < 4; ++t) at[t] = j + t < steps ? index + (j + t) * kCsrLanes : kZeros;
    Q::Quad(at[0], at[1], at[2], at[3], slice->index[j / 4]);
    for (int i = 0; i < R; ++i) {
      for (int t = 0; t < 4; ++t) {
        at[t] = j + t < steps ? values + ((j + t) * R + i) * kCsrLanes : kZeros;
      }
      Q::Quad(at[0], at[1], at[2], at[3], slice->values[j / 4][i]);
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int l = 0; l < kCsrLanes; l += Q::kLanes) {
      typename Q::Reg sum = Q::Set1(0);
      for (int q = 0; q < (Q::kOffset != 0 ? (steps + 3) / 4 : 0); ++q) {
        const int32_t* four = reinterpret_cast<const int32_t*>(slice->values[q][i] + l);
        sum =
            Q::Dot(sum, Q::Set1(static_cast<int32_t>(Q::kOffset * 0x01010101u)), Q::LoadSums(four));
      }
      Q::StoreSums(slice->excess[i] + l, sum);
    }
  }
}

// One lane: R rows of weights times kPixels pixels.
template <typename Q, int R>
static inline __attribute__((always_inline)) void Int8Sums(const Int8Slice<R>& slice, int l,
                                                           int quads, const uint8_t* x, int width,
                                                           typename Q::Reg (&sum)[R][4]) {
  for (int i = 0; i < R; ++i) {
    const typename Q::Reg start = Q::Set1(-slice.excess[i][l]);
    for (int p = 0; p < 4; ++p) sum[i][p] = start;
  }
  for (int q = 0; q < quads; ++q) {
    const uint32_t k = slice.index[q][l];
    typename Q::Reg codes[4];
    Q::Interleave(Q::Load(x + static_cast<int64_t>(k & 255) * width),
                  Q::Load(x + static_cast<int64_t>(k >> 8 & 255) * width),
                  Q::Load(x + static_cast<int64_t>(k >> 16 & 255) * width),
                  Q::Load(x + static_cast<int64_t>(k >> 24) * width), codes);
    for (int i = 0; i < R; ++i) {
      const typename Q::Reg w = Q::Set1(static_cast<int32_t>(slice.values[q][i][l]));
      for (int p = 0; p < 4; ++p) sum[i][p] = Q::Dot(sum[i][p], codes[p], w);
    }
  }
}

template <typename Q, int R>
static void Int8Tile(const CsrTile& tile, const uint8_t* x, int width, int32_t* y, bool first) {
  Int8Slice<R> slice;
  const uint8_t* values = static_cast<const uint8_t*>(tile.values);
  const uint8_t* index = tile.index;
  int64_t left = tile.steps;
  for (int s = 0; s < tile.groups; s += kCsrLanes) {
    const uint8_t* count = tile.count + s;
    const int steps = count[0] < left ? count[0] : static_cast<int>(left);
    if (steps == 0 && !first) break;  // sorted: nothing kept from here on
    left -= steps;
    Arrange<Q, R>(values, index, steps, &slice);
    for (int l = 0; l < kCsrLanes; ++l) {
      const int lane_steps = count[l] < steps ? count[l] : steps;
      const int quads = (lane_steps + 3) / 4;
      for (int at = 0; at < width; at += Q::kPixels) {
        typename Q::Reg sum[R][4];
        Int8Sums<Q, R>(slice, l, quads, x + at, width, sum);
        for (int i = 0; i < R; ++i) {
          int32_t* out = y + (static_cast<int64_t>(tile.order[s + l]) * R + i) * width + at;
          for (int p = 0; p < 4; ++p) {
            int32_t* to = out + p * Q::kLanes;
            Q::StoreSums(to, first ? sum[i][p] : Q::Add(Q::LoadSums(to), sum[i][p]));
          }
        }
      }
    }
    values += static_cast<int64_t>(steps) * R * kCsrLanes;
    index += static_cast<int64_t>(steps) * kCsrLanes;
  }
}

template <typename Q>
static void Int8Codes(const float* x, int64_t cols, int width, const float* inverse,
                      uint8_t* codes) {
  for (int64_t k = 0; k < cols; ++k) {
    for (int at = 0; at < width; at += Q::kPixels) {
      Q::StoreCodes(x + k * width + at, inverse + at, codes + k * width + at);
    }
  }
}

static inline void Int8Rescale(int32_t* y, int64_t rows, int width, const float* scale) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int m = 0; m < width; ++m) {
      const float scaled = static_cast<float>(y[r * width + m]) * scale[m];
      std::memcpy(y + r * width + m, &scaled, sizeof scaled);
    }
  }
}

}  // namespace sparsekern
