// SPDX-License-Identifier: Apache-2.0
// The loops of gqs_linear, over a vector type V (base/simd/conversion.h) that has besides
// Word, kLanes 32-bit integers; LoadWord(bytes); Code<b>(word, j): lane by lane field j of b bits,
// signed, as a float; Sum(v) of its lanes; kMostRows: of x, that the decode kernels take at a time;
// kGroups: whether one row of x has a kernel for each size of groups;
// kMasks: whether there is FmaWhere(bits, j, a, b, sum), of bit j, and a unit is one vector.
//
// Decode is memory-bound: 10 bytes for a group of 16 four-bit weights with its scale, and x, 16
// numbers of it a group, stays in the first-level cache. Sixteen lanes are sixteen columns of one
// row of W, so a group meets one load of x, whatever groups its row keeps; what is left to do is a
// shift, a look-up (or a conversion), a multiply by the scale and a multiply-add a row of x. On
// AVX-512 that is two cycles a group at best, where memory gives one in 2.4.
#pragma once

#include <cstdint>

#include "base/simd/batch.h"
#include "base/simd/conversion.h"
#include "ops/gqs_linear/kernels.h"

namespace sparsekern {

// Field j of a unit's block, or of its part of it, less the zero-point, times the scale.
template <typename V, int B, bool kZero>
static inline __attribute__((always_inline)) typename V::Reg GqsWeight(typename V::Word word, int j,
                                                                       const float* scale,
                                                                       const float* zero) {
  typename V::Reg w = V::template Code<B>(word, j);
  if constexpr (kZero) w = V::Add(w, V::Set1(-*zero));
  return V::Mul(w, V::Set1(*scale));
}

// The sums of M rows of x for every part of a run. `chunks(first, n, sum)` adds n chunks from group
// `first` on, `some(first, until, sum)` groups within one. Only what a row has of its first and
// last chunk is taken group by group.
template <typename V, int M, typename Chunks, typename Some>
static inline __attribute__((always_inline)) void GqsParts(const GqsRun& run, int chunk_shift,
                                                           float* y, const Chunks& chunks,
                                                           const Some& some) {
  constexpr int kParts = kGqsUnit / V::kLanes;
  // Sums alternate between sets where one would wait for its own multiply-adds.
  constexpr int kSets = M * kParts >= 4 ? 1 : 4 / (M * kParts);
  const int chunk = 1 << chunk_shift;
  for (int i = 0; i < run.count; ++i, y += M) {
    typename V::Reg sum[kSets][M][kParts];
    for (int set = 0; set < kSets; ++set) {
      for (int m = 0; m < M; ++m) {
        for (int p = 0; p < kParts; ++p) sum[set][m][p] = V::Zero();
      }
    }
    int at = run.starts[i];
    const int until = run.starts[i + 1];
    if ((at & (chunk - 1)) != 0) {
      const int next = (at | (chunk - 1)) + 1;
      some(at, next < until ? next : until, sum);
      at = next;
    }
    if (const int n = (until - at) >> chunk_shift; n > 0) {
      chunks(at, n, sum);
      at += n << chunk_shift;
    }
    if (at < until) some(at, until, sum);
    for (int m = 0; m < M; ++m) {
      typename V::Reg total = V::Zero();
      for (int set = 0; set < kSets; ++set) {
        for (int p = 0; p < kParts; ++p) total = V::Add(total, sum[set][m][p]);
      }
      y[m] = V::Sum(total);
    }
  }
}

constexpr int kGqsAhead = 2048;  // bytes of codes that are asked for before they are needed

template <typename V, int B, bool kZero, int M>
struct GqsRows {
  static constexpr int kParts = kGqsUnit / V::kLanes;
  static constexpr int kFields = 32 / B;

  // Unit u of the run, field j of `word`, times M rows of x.
  template <typename Sum>
  static inline __attribute__((always_inline)) void Add(const GqsRun& run, const uint8_t* x, int u,
                                                        int j, const typename V::Word* word,
                                                        Sum& sum) {
    const int g = u >> run.shift, within = u & ((1 << run.shift) - 1);
    const float* at =
        reinterpret_cast<const float*>(x + run.offset[g] + within * (M * kGqsUnit * 4));
    for (int p = 0; p < kParts; ++p) {
      const typename V::Reg w =
          GqsWeight<V, B, kZero>(word[p], j, run.scale + g, kZero ? run.zero + g : nullptr);
      for (int m = 0; m < M; ++m) {
        sum[m][p] = V::Fma(w, V::Load(at + m * kGqsUnit + p * V::kLanes), sum[m][p]);
      }
    }
  }

  static inline __attribute__((always_inline)) void Load(const GqsRun& run, int u,
                                                         typename V::Word* word) {
    const uint8_t* block = run.values + u / kFields * 64;
    for (int p = 0; p < kParts; ++p) word[p] = V::LoadWord(block + 4 * p * V::kLanes);
  }

  template <typename Sum>
  static inline __attribute__((always_inline)) void Some(const GqsRun& run, const uint8_t* x,
                                                         int first, int until, Sum& sum) {
    typename V::Word word[kParts];
    Load(run, first << run.shift, word);
#pragma GCC unroll 1
    for (int u = first << run.shift; u < until << run.shift; ++u) {
      Add(run, x, u, u & (kFields - 1), word, sum);
    }
  }
};

// M rows of x, groups of any size.
template <typename V, int B, bool kZero, int M>
static void GqsDot(const GqsRun& run, const uint8_t* x, float* y) {
  using Rows = GqsRows<V, B, kZero, M>;
  const int chunk_shift = GqsChunkShift(B, run.shift);
  GqsParts<V, M>(
      run, chunk_shift, y,
      [&](int first, int n, auto& sum) __attribute__((always_inline)) {
        constexpr int kSets = sizeof sum / sizeof sum[0];
        const int until = (first + (n << chunk_shift)) << run.shift;
        for (int unit = first << run.shift; unit < until; unit += Rows::kFields) {
          typename V::Word word[Rows::kParts];
          Rows::Load(run, unit, word);
          __builtin_prefetch(run.values + unit / Rows::kFields * 64 + kGqsAhead);
#pragma GCC unroll 16
          for (int j = 0; j < Rows::kFields; ++j) {
            Rows::Add(run, x, unit + j, j, word, sum[j % kSets]);
          }
        }
      },
      [&](int first, int until, auto& sum)
          __attribute__((always_inline)) { Rows::Some(run, x, first, until, sum[0]); });
}

// Groups of one block for one row of x. All units of the block are multiplied, also those of other
// rows, whose products are masked: how many there are would be guessed wrong at both ends of a row.
template <typename V, int B, bool kZero, int K, typename Sum>
static inline __attribute__((always_inline)) void GqsEdge(const GqsRun& run, const uint8_t* x,
                                                          int first, int until, Sum& sum) {
  constexpr int kFields = 32 / B, kSets = sizeof sum / sizeof sum[0];
  static_assert(V::kLanes == kGqsUnit);
  const int unit = first * K & -kFields;
  const uint32_t kept = (2u << (until * K - 1 - unit)) - (1u << (first * K - unit));
  const typename V::Word word = V::LoadWord(run.values + unit / kFields * 64);
#pragma GCC unroll 16
  for (int j = 0; j < kFields; ++j) {
    const int g = unit / K + j / K;
    const auto w = GqsWeight<V, B, kZero>(word, j, run.scale + g, kZero ? run.zero + g : nullptr);
    const auto xs = V::Load(reinterpret_cast<const float*>(x + run.offset[g]) + j % K * kGqsUnit);
    sum[j % kSets][0][0] = V::FmaWhere(kept, j, w, xs, sum[j % kSets][0][0]);
  }
}

// One row of x, groups of K units: the scale multiplies what a whole group gives.
template <typename V, int B, bool kZero, int K>
static void GqsDotOne(const GqsRun& run, const uint8_t* x, float* y) {
  using Rows = GqsRows<V, B, kZero, 1>;
  constexpr int kParts = Rows::kParts, kFields = Rows::kFields;
  constexpr int kUnits = K > kFields ? K : kFields;  // of a chunk
  GqsParts<V, 1>(
      run, GqsChunkShift(B, run.shift), y,
      [&](int first, int n, auto& sum) __attribute__((always_inline)) {
        constexpr int kSets = sizeof sum / sizeof sum[0];
        const uint8_t* block = run.values + first * K / kFields * 64;
        const uint32_t* offset = run.offset + first;
        const float* scale = run.scale + first;
        const float* zero = kZero ? run.zero + first : nullptr;
        for (int chunk = 0; chunk < n; ++chunk) {
          typename V::Word word[kParts];
          typename V::Reg group[kParts];
#pragma GCC unroll 16
          for (int u = 0; u < kUnits; ++u) {
            const int j = u % kFields, g = u / K, i = u % K;
            if (j == 0) {
              for (int p = 0; p < kParts; ++p) word[p] = V::LoadWord(block + 4 * p * V::kLanes);
              __builtin_prefetch(block + kGqsAhead);
              block += 64;
            }
            const float* at = reinterpret_cast<const float*>(x + offset[g]) + i * kGqsUnit;
            for (int p = 0; p < kParts; ++p) {
              typename V::Reg w = V::template Code<B>(word[p], j);
              if constexpr (kZero) w = V::Add(w, V::Set1(-zero[g]));
              typename V::Reg& s = sum[g % kSets][0][p];
              const typename V::Reg xs = V::Load(at + p * V::kLanes);
              if constexpr (K == 1) {
                s = V::Fma(V::Mul(w, V::Set1(scale[g])), xs, s);
              } else {
                group[p] = i == 0 ? V::Mul(w, xs) : V::Fma(w, xs, group[p]);
                if (i == K - 1) s = V::Fma(group[p], V::Set1(scale[g]), s);
              }
            }
          }
          offset += kUnits / K;
          scale += kUnits / K;
          if (kZero) zero += kUnits / K;
        }
      },
      [&](int first, int until, auto& sum) __attribute__((always_inline)) {
        if constexpr (V::kMasks && K < kFields) {
          GqsEdge<V, B, kZero, K>(run, x, first, until, sum);
        } else {
          Rows::Some(run, x, first, until, sum[0]);
        }
      });
}

template <typename V, int B, bool kZero>
static void GqsExpand(const GqsUnits& units, float* out) {
  constexpr int kFields = 32 / B;
  for (int64_t i = 0; i < units.count; ++i) {
    const int64_t u = units.first + i;
    const uint8_t* block = units.values + u / kFields * 64;
    for (int p = 0; p < kGqsUnit; p += V::kLanes) {
      const typename V::Word word = V::LoadWord(block + 4 * p);
      V::Store(out + i * kGqsUnit + p,
               GqsWeight<V, B, kZero>(word, static_cast<int>(u % kFields), units.scale + i,
                                      kZero ? units.zero + i : nullptr));
    }
  }
}

// The sums of one row of W; a unit's sixteen columns of x lie one after the other. As many vectors
// at a time as fit into registers twice, so that neighbouring columns do not wait for each other.
template <typename V, int U>
static void GqsBatch(const float* w, const uint8_t* column, int count, const float* x, float* y) {
  constexpr int kWidth = U * V::kLanes;
  constexpr int kPart = U < V::kAccumulators ? U : V::kAccumulators;
  const auto part = [&]<int P>(int at) __attribute__((always_inline)) {
    constexpr int kSets = P >= 8 ? 1 : P >= 4 ? 2 : 4;
    typename V::Reg sum[kSets][P];
    for (int u = 0; u < P; ++u) {
      sum[0][u] = V::Load(y + at + u * V::kLanes);
      for (int set = 1; set < kSets; ++set) sum[set][u] = V::Zero();
    }
    for (int i = 0; i < count; ++i) {
      const float* xk = x + static_cast<int64_t>(column[i]) * kWidth + at;
      const float* wk = w + i * kGqsUnit;
#pragma GCC unroll 4
      for (int k = 0; k < kGqsUnit; ++k) {
        const typename V::Reg weight = V::Set1(wk[k]);
        for (int u = 0; u < P; ++u) {
          sum[k % kSets][u] = V::Fma(weight, V::Load(xk + u * V::kLanes), sum[k % kSets][u]);
        }
        xk += kWidth;
      }
    }
    for (int u = 0; u < P; ++u) {
      for (int set = 1; set < kSets; ++set) sum[0][u] = V::Add(sum[0][u], sum[set][u]);
      V::Store(y + at + u * V::kLanes, sum[0][u]);
    }
  };
  for (int at = 0; at < U / kPart * kPart * V::kLanes; at += kPart * V::kLanes) {
    part.template operator()<kPart>(at);
  }
  if constexpr (U % kPart != 0) {
    part.template operator()<U % kPart>(U / kPart * kPart * V::kLanes);
  }
}

static inline uint32_t GqsMaskWord(const uint8_t* words, int64_t w) {
  uint16_t bits;
  std::memcpy(&bits, words + 2 * w, 2);
  return bits;
}

// The word that holds the first bit after `skip` set ones, with only what follows them; word_count
// when there is none.
static inline int64_t GqsSkip(const uint8_t* words, int64_t word_count, int64_t skip,
                              uint32_t* bits) {
  for (int64_t w = 0; w < word_count; ++w) {
    *bits = GqsMaskWord(words, w);
    const int set = __builtin_popcount(*bits);
    if (skip < set) {
      for (; skip > 0; --skip) *bits &= *bits - 1;
      return w;
    }
    skip -= set;
  }
  return word_count;
}

static inline void GqsOffsets(const uint8_t* words, int64_t word_count, int64_t skip, int64_t count,
                              uint32_t step, uint32_t* out) {
  uint32_t* const end = out + count;
  uint32_t bits = 0;
  for (int64_t w = GqsSkip(words, word_count, skip, &bits); w < word_count && out < end;) {
    for (; bits != 0 && out < end; bits &= bits - 1) {
      const auto position =
          static_cast<uint32_t>(w) * 16 + static_cast<uint32_t>(__builtin_ctz(bits));
      *out++ = position * step;
    }
    if (++w < word_count) bits = GqsMaskWord(words, w);
  }
}

template <typename V, int B, bool kZero>
static constexpr void SetGqsDots(GqsDotFn (&one)[kGqsShifts], GqsDotFn (&dot)[kGqsWidths]) {
  if constexpr (V::kGroups) {
    one[0] = GqsDotOne<V, B, kZero, 1>;
    one[1] = GqsDotOne<V, B, kZero, 2>;
    one[2] = GqsDotOne<V, B, kZero, 4>;
    one[3] = GqsDotOne<V, B, kZero, 8>;
  } else {
    for (GqsDotFn& any : one) any = GqsDot<V, B, kZero, 1>;
  }
  dot[0] = GqsDot<V, B, kZero, 2>;
  dot[1] = GqsDot<V, B, kZero, 4>;
  if constexpr (V::kMostRows > 4) {
    dot[2] = GqsDot<V, B, kZero, 8>;
    dot[3] = GqsDot<V, B, kZero, 16>;
  }
}

template <typename V>
static constexpr GqsKernels MakeGqsKernels(const TileKernels& tiles, int max_decode_rows,
                                           GqsOffsetsFn offsets = GqsOffsets) {
  GqsKernels kernels{tiles,
                     max_decode_rows,
                     {},
                     {},
                     {{GqsExpand<V, 2, false>, GqsExpand<V, 2, true>},
                      {GqsExpand<V, 4, false>, GqsExpand<V, 4, true>},
                      {GqsExpand<V, 8, false>, GqsExpand<V, 8, true>}},
                     {GqsBatch<V, V::kBatchVectors[0]>, GqsBatch<V, V::kBatchVectors[1]>,
                      GqsBatch<V, V::kBatchVectors[2]>, GqsBatch<V, V::kBatchVectors[3]>,
                      GqsBatch<V, V::kBatchVectors[4]>},
                     offsets};
  SetGqsDots<V, 2, false>(kernels.one[0][0], kernels.dot[0][0]);
  SetGqsDots<V, 2, true>(kernels.one[0][1], kernels.dot[0][1]);
  SetGqsDots<V, 4, false>(kernels.one[1][0], kernels.dot[1][0]);
  SetGqsDots<V, 4, true>(kernels.one[1][1], kernels.dot[1][1]);
  SetGqsDots<V, 8, false>(kernels.one[2][0], kernels.dot[2][0]);
  SetGqsDots<V, 8, true>(kernels.one[2][1], kernels.dot[2][1]);
  return kernels;
}

}  // namespace sparsekern
