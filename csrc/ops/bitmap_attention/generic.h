// SPDX-License-Identifier: Apache-2.0
// The loops of bitmap_attention, over a vector type V (base/simd/conversion.h, expansion.h) that
// has besides SumRows(Reg r[kLanes]): in lane i the sum of the lanes of r[i].
//
// Memory-bound as far as expansion keeps up: a token's K and V of one head are read once, 56 % of
// the dense bytes at half the channels kept. All query heads of a KV head use a vector while it is
// in a register: four accumulators of K, or four times a few of V, need no room but registers, and
// nothing is written back. Where more than four heads share it, the first four leave the expanded
// rows of 16 tokens in the first-level cache for the others.
//
// With AVX-512 and 16-bit values, 16 channels take about nine slots of the two ports that both
// expand and multiply: one to widen, one to shift, two to expand, one or two for the mask, four
// multiply-adds. With VBMI2 they are six and a half (vector_x86_avx512vbmi2.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "base/simd/activations.h"
#include "base/simd/conversion.h"
#include "base/simd/expansion.h"
#include "ops/bitmap_attention/kernels.h"

namespace sparsekern {

// Bits c .. c + Bits of a row's mask, as far as it has them. Bits: 64, or a number that divides 64;
// c a multiple of it.
template <int Bits>
static inline uint64_t KvMaskBits(const uint8_t* mask, int c, int head_dim) {
  if constexpr (Bits < 8) {
    return mask[c / 8] >> (c % 8) & ((1u << Bits) - 1u);
  } else {
    uint64_t bits = 0;
    if (c + Bits <= head_dim) {
      std::memcpy(&bits, mask + c / 8, Bits / 8);
    } else {  // only with 16 lanes: a head_dim that is an odd multiple of 8
      bits = mask[c / 8];
    }
    return bits;
  }
}

// How many of the bits below lane vector i are set.
template <typename V, int i>
static inline int KvKeptBelow(uint64_t word) {
  if constexpr (i == 0) {
    return 0;
  } else {
    return __builtin_popcountll(word & ((uint64_t{1} << (i * V::kLanes)) - 1));
  }
}

template <typename V, DType D, int H, bool Keep>
static void KvScores(const KvRows& rows, int begin, int end, const float* q, int64_t stride,
                     float* s, float* kept) {
  constexpr int kTile = V::kLanes > H ? V::kLanes : H;  // scores that are summed up together
  constexpr int kTokens = kTile / H;
  const int whole = rows.head_dim / kWordColumns * kWordColumns;
  const int row_mask = rows.head_dim / 8;
  for (int t = begin; t < end; t += kTokens) {
    typename V::Reg sums[kTile];
    for (int i = 0; i < kTokens; ++i) {
      typename V::Reg acc[H];
      for (int h = 0; h < H; ++h) acc[h] = V::Zero();
      if (t + i < end) {
        const uint8_t* values = rows.values + (t + i) * rows.keep * kBytesOf<D>;
        const uint8_t* mask = rows.masks + (t + i) * row_mask;
        float* row = Keep ? kept + (t + i - begin) * stride : nullptr;
        const auto multiply = [&](int c, typename V::Reg x) __attribute__((always_inline)) {
          for (int h = 0; h < H; ++h) acc[h] = V::Fma(x, V::Load(q + h * stride + c), acc[h]);
          if constexpr (Keep) V::Store(row + c, x);
        };
        const auto add = [&](int c, const uint8_t* from, typename V::Lanes lanes)
                             __attribute__((always_inline)) {
                               multiply(c, V::Spread(LoadAs<V, D>(from, 0), lanes));
                             };
        __builtin_prefetch(values + 2048);
        __builtin_prefetch(values + 2048 + 64);
        for (int c = 0; c < whole; c += kWordColumns) {
          uint64_t word;
          std::memcpy(&word, mask + c / 8, sizeof word);
          if constexpr (kSpreadsWords<V, D>) {
            typename V::Reg x[kPieces<V>];
            V::template SpreadWord<D>(values, word, x);
            Unroll<kPieces<V>>(
                [&]<int p>() __attribute__((always_inline)) { multiply(c + p * V::kLanes, x[p]); });
          } else {
            Unroll<kPieces<V>>([&]<int p>() __attribute__((always_inline)) {
              add(c + p * V::kLanes, values + KvKeptBelow<V, p>(word) * kBytesOf<D>,
                  V::template Piece<p>(&word));
            });
          }
          values += __builtin_popcountll(word) * kBytesOf<D>;
        }
        for (int c = whole; c < rows.head_dim; c += V::kLanes) {
          const auto bits = static_cast<uint32_t>(KvMaskBits<V::kLanes>(mask, c, rows.head_dim));
          add(c, values, V::LanesOf(bits));
          values += V::CountKept(bits) * kBytesOf<D>;
        }
      }
      for (int h = 0; h < H; ++h) sums[i * H + h] = acc[h];
    }
    for (int g = 0; g < kTile; g += V::kLanes) {
      V::Store(s + (t - begin) * H + g, V::SumRows(sums + g));
    }
  }
}

// Vectors of channels that a pass over the tokens takes, with a sum for each of H heads.
template <typename V, int H>
static constexpr int kKvVectors = kPieces<V> < V::kAccumulators / H ? kPieces<V>
                                  : V::kAccumulators / H >= 8       ? 8
                                  : V::kAccumulators / H >= 4       ? 4
                                                                    : 2;

// Channels c .. c + N * kLanes. offset[t]: values of that token's row before them.
template <typename V, DType D, int H, int N, bool Keep>
static inline void KvValuesBlock(const KvRows& rows, int begin, int end, int c, const float* p,
                                 int64_t stride, float* acc, float* kept, uint16_t* offset) {
  constexpr int kBits = N * V::kLanes;
  typename V::Reg sum[H][N];
  for (int h = 0; h < H; ++h) {
    for (int n = 0; n < N; ++n) sum[h][n] = V::Load(acc + h * stride + c + n * V::kLanes);
  }
  const int row_mask = rows.head_dim / 8;
  for (int t = begin; t < end; ++t) {
    const uint64_t word = KvMaskBits<kBits>(rows.masks + t * row_mask, c, rows.head_dim);
    const uint8_t* values =
        rows.values + (t * rows.keep + offset[t - begin]) * static_cast<int>(kBytesOf<D>);
    __builtin_prefetch(values + 2048);
    offset[t - begin] = static_cast<uint16_t>(offset[t - begin] + __builtin_popcountll(word));
    typename V::Reg weight[H];
    for (int h = 0; h < H; ++h) weight[h] = V::Set1(p[(t - begin) * H + h]);
    if constexpr (kBits == kWordColumns && kSpreadsWords<V, D>) {
      typename V::Reg x[N];
      V::template SpreadWord<D>(values, word, x);
      for (int n = 0; n < N; ++n) {
        for (int h = 0; h < H; ++h) sum[h][n] = V::Fma(x[n], weight[h], sum[h][n]);
        if constexpr (Keep) V::Store(kept + (t - begin) * stride + c + n * V::kLanes, x[n]);
      }
    } else {
      Unroll<N>([&]<int n>() __attribute__((always_inline)) {
        const uint8_t* from = values + KvKeptBelow<V, n>(word) * kBytesOf<D>;
        typename V::Lanes lanes;
        if constexpr (kBits == kWordColumns) {
          lanes = V::template Piece<n>(&word);
        } else {
          lanes = V::LanesOf(PieceBits<V, n>(word));
        }
        const typename V::Reg x = V::Spread(LoadAs<V, D>(from, 0), lanes);
        for (int h = 0; h < H; ++h) sum[h][n] = V::Fma(x, weight[h], sum[h][n]);
        if constexpr (Keep) V::Store(kept + (t - begin) * stride + c + n * V::kLanes, x);
      });
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int n = 0; n < N; ++n) V::Store(acc + h * stride + c + n * V::kLanes, sum[h][n]);
  }
}

template <typename V, DType D, int H, bool Keep>
static void KvValues(const KvRows& rows, int begin, int end, const float* p, int64_t stride,
                     float* acc, float* kept) {
  constexpr int kVectors = kKvVectors<V, H>;
  constexpr int kWidth = kVectors * V::kLanes;
  uint16_t offset[64] = {};
  int c = 0;
  for (; c + kWidth <= rows.head_dim; c += kWidth) {
    KvValuesBlock<V, D, H, kVectors, Keep>(rows, begin, end, c, p, stride, acc, kept, offset);
  }
  for (; c < rows.head_dim; c += V::kLanes) {
    KvValuesBlock<V, D, H, 1, Keep>(rows, begin, end, c, p, stride, acc, kept, offset);
  }
}

template <typename V, int H>
static void KvDenseScores(const float* kept, int tokens, const float* q, int64_t stride, float* s) {
  constexpr int kTile = V::kLanes > H ? V::kLanes : H;
  constexpr int kTokens = kTile / H;
  for (int t = 0; t < tokens; t += kTokens) {
    typename V::Reg sums[kTile];
    for (int i = 0; i < kTokens; ++i) {
      typename V::Reg acc[H];
      for (int h = 0; h < H; ++h) acc[h] = V::Zero();
      if (t + i < tokens) {
        for (int64_t c = 0; c < stride; c += V::kLanes) {
          const typename V::Reg x = V::Load(kept + (t + i) * stride + c);
          for (int h = 0; h < H; ++h) {
            acc[h] = V::Fma(x, V::Load(q + h * stride + c), acc[h]);
          }
        }
      }
      for (int h = 0; h < H; ++h) sums[i * H + h] = acc[h];
    }
    for (int g = 0; g < kTile; g += V::kLanes) V::Store(s + t * H + g, V::SumRows(sums + g));
  }
}

template <typename V, int H>
static void KvDenseValues(const float* kept, int tokens, const float* p, int64_t stride,
                          float* acc) {
  constexpr int kVectors = 16 / V::kLanes < 4 ? 16 / V::kLanes : 4;  // of 16, which stride is
  for (int64_t c = 0; c < stride; c += kVectors * V::kLanes) {
    typename V::Reg sum[H][kVectors];
    for (int h = 0; h < H; ++h) {
      for (int n = 0; n < kVectors; ++n) sum[h][n] = V::Load(acc + h * stride + c + n * V::kLanes);
    }
    for (int t = 0; t < tokens; ++t) {
      for (int n = 0; n < kVectors; ++n) {
        const typename V::Reg x = V::Load(kept + t * stride + c + n * V::kLanes);
        for (int h = 0; h < H; ++h) sum[h][n] = V::Fma(x, V::Set1(p[t * H + h]), sum[h][n]);
      }
    }
    for (int h = 0; h < H; ++h) {
      for (int n = 0; n < kVectors; ++n) V::Store(acc + h * stride + c + n * V::kLanes, sum[h][n]);
    }
  }
}

// A head's scores are H apart, so lane l of a vector, or of the H that vectors are narrower than,
// belongs to head l % H.
template <typename V, int H>
static void KvSoftmax(float* s, int tokens, float scale, float softcap, float* m, float* sum,
                      float* acc, int64_t stride) {
  constexpr int kTile = V::kLanes > H ? V::kLanes : H;
  constexpr int kRegs = kTile / V::kLanes;
  constexpr float kLowest = -3.402823466e38f;
  const int n = tokens * H;
  typename V::Reg most[kRegs];
  for (int r = 0; r < kRegs; ++r) most[r] = V::Set1(kLowest);
  for (int i = n; i < (n + kTile - 1) / kTile * kTile; ++i) s[i] = 0.0f;
  const typename V::Reg factor = V::Set1(scale);
  for (int i = 0; i < n; i += kTile) {
    for (int r = 0; r < kRegs; ++r) {
      float* at = s + i + r * V::kLanes;
      typename V::Reg x = V::Mul(V::Load(at), factor);
      if (softcap != 0.0f) {  // tanh u = 2 sigmoid(2 u) - 1
        const typename V::Reg y = Sigmoid<V>(V::Mul(x, V::Set1(2.0f / softcap)));
        x = V::Mul(V::Fma(y, V::Set1(2.0f), V::Set1(-1.0f)), V::Set1(softcap));
      }
      V::Store(at, x);
    }
  }
  for (int i = n; i < (n + kTile - 1) / kTile * kTile; ++i) s[i] = kLowest;
  for (int i = 0; i < n; i += kTile) {
    for (int r = 0; r < kRegs; ++r) most[r] = V::Max(most[r], V::Load(s + i + r * V::kLanes));
  }
  // Lane by lane from here: of every tile of scores, these are few.
  float lanes[kTile], old[kTile], now[kTile], move[kTile];
  for (int r = 0; r < kRegs; ++r) V::Store(lanes + r * V::kLanes, most[r]);
  for (int h = 0; h < H; ++h) {
    float largest = m[h];
    for (int l = h; l < kTile; l += H) largest = lanes[l] > largest ? lanes[l] : largest;
    for (int l = h; l < kTile; l += H) {
      old[l] = m[h];
      now[l] = largest;
    }
    m[h] = largest;
  }
  typename V::Reg total[kRegs], top[kRegs];
  for (int r = 0; r < kRegs; ++r) {
    top[r] = V::Mul(V::Load(now + r * V::kLanes), V::Set1(-1.0f));
    V::Store(move + r * V::kLanes, Exp<V>(V::Add(V::Load(old + r * V::kLanes), top[r])));
    total[r] = V::Zero();
  }
  for (int i = 0; i < n; i += kTile) {
    for (int r = 0; r < kRegs; ++r) {
      float* at = s + i + r * V::kLanes;
      typename V::Reg weight = Exp<V>(V::Add(V::Load(at), top[r]));
      V::Store(at, weight);
      if (at + V::kLanes > s + n) {  // padding weighs nothing, whatever the largest score is
        for (float* pad = at < s + n ? s + n : at; pad < at + V::kLanes; ++pad) *pad = 0.0f;
        weight = V::Load(at);
      }
      total[r] = V::Add(total[r], weight);
    }
  }
  for (int r = 0; r < kRegs; ++r) V::Store(lanes + r * V::kLanes, total[r]);
  for (int h = 0; h < H; ++h) {
    float of_head = 0.0f;
    for (int l = h; l < kTile; l += H) of_head += lanes[l];
    sum[h] = sum[h] * move[h] + of_head;
    if (move[h] == 1.0f) continue;
    const typename V::Reg by = V::Set1(move[h]);
    for (int64_t c = 0; c < stride; c += V::kLanes) {
      V::Store(acc + h * stride + c, V::Mul(V::Load(acc + h * stride + c), by));
    }
  }
}

#define SPARSEKERN_KV_BY_DTYPE(fn, V, ...)                            \
  {fn<V, DType::kF32, __VA_ARGS__>, fn<V, DType::kBF16, __VA_ARGS__>, \
   fn<V, DType::kF16, __VA_ARGS__>}
#define SPARSEKERN_KV_BY_CHUNK(fn, V, D) {fn<V, D, 1, false>, fn<V, D, kKvChunk, false>}

template <typename V>
static constexpr BitmapAttentionKernels MakeBitmapAttentionKernels(const TileKernels& tiles) {
  return BitmapAttentionKernels{tiles,
                                {SPARSEKERN_KV_BY_CHUNK(KvScores, V, DType::kF32),
                                 SPARSEKERN_KV_BY_CHUNK(KvScores, V, DType::kBF16),
                                 SPARSEKERN_KV_BY_CHUNK(KvScores, V, DType::kF16)},
                                {SPARSEKERN_KV_BY_CHUNK(KvValues, V, DType::kF32),
                                 SPARSEKERN_KV_BY_CHUNK(KvValues, V, DType::kBF16),
                                 SPARSEKERN_KV_BY_CHUNK(KvValues, V, DType::kF16)},
                                SPARSEKERN_KV_BY_DTYPE(KvScores, V, kKvChunk, true),
                                SPARSEKERN_KV_BY_DTYPE(KvValues, V, kKvChunk, true),
                                {KvDenseScores<V, 1>, KvDenseScores<V, kKvChunk>},
                                {KvDenseValues<V, 1>, KvDenseValues<V, kKvChunk>},
                                {KvSoftmax<V, 1>, KvSoftmax<V, kKvChunk>},
                                {},
                                {}};
}

#undef SPARSEKERN_KV_BY_DTYPE
#undef SPARSEKERN_KV_BY_CHUNK

}  // namespace sparsekern
