// SPDX-License-Identifier: Apache-2.0
// The nm_mask kernels' loops, written once as `static` templates over a vector type V that each ISA
// file defines in an unnamed namespace (ops/csr_spmm/generic.h says why).
//
// A lane is a group: vector i holds element i of kLanes groups. Then each pair of elements is
// compared once, i < j: "j is larger" raises the rank of i and lowers that of j, which starts at
// its index, so that ties keep the lower index at no cost. Kept are ranks below n. Comparing a
// vector with its own m - 1 rotations would need twice the comparisons, a permute for each and the
// index for ties. It costs a transposition of 4x4 on the way in, two shuffles a vector; on the way
// out, four elements of a group are the four bytes of one lane.
//
// Up to m = 4 the limit is memory: 4 bytes read and 1 written per weight. docs/kernels.md has
// figures.
//
// V offers, over int32 lanes in parts of 128 bits: kLanes; Reg; Set1, And, Xor, Sub; Sign (-1 where
// negative, else 0); Load and LoadHalf of kLanes elements (16 bits become the upper half of a
// lane); LoadQuads and LoadHalfQuads, part b from p + b * stride elements; StoreQuads, part b to
// p + b * stride bytes; StoreGrouped, lane 4 b + v as word v * kLanes / 4 + b; Lo32, Hi32, Lo64,
// Hi64: interleave the lower or upper halves of the parts; Mask; Greater; Where(mask, a, b);
// Raise, Lower(rank, mask): one more or less where the mask is set; Mark(word, mask, bits): or them
// in there; StoreFlags: a byte a lane, 1 where the mask is set.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/nm_mask/kernels.h"

namespace sparsekern {

// Integers in the order of the scores: the magnitude, negated where the sign counts and is set; so
// -0.0 becomes 0. A NaN becomes the least of all. No arithmetic on floats: it would flush
// denormals where the caller has asked for that.
template <typename V>
static inline typename V::Reg SortKey(typename V::Reg bits, typename V::Reg sign_counts,
                                      typename V::Reg infinity) {
  const typename V::Reg magnitude = V::And(bits, V::Set1(0x7fffffff));
  const typename V::Reg sign = V::And(V::Sign(bits), sign_counts);
  const typename V::Reg key = V::Sub(V::Xor(magnitude, sign), sign);
  const auto nan = V::Greater(magnitude, infinity);
  return V::Where(nan, V::Set1(INT32_MIN), key);
}

template <typename V>
static inline void Transpose4(typename V::Reg* r) {
  const typename V::Reg a = V::Lo32(r[0], r[1]);
  const typename V::Reg b = V::Hi32(r[0], r[1]);
  const typename V::Reg c = V::Lo32(r[2], r[3]);
  const typename V::Reg d = V::Hi32(r[2], r[3]);
  r[0] = V::Lo64(a, c);
  r[1] = V::Hi64(a, c);
  r[2] = V::Lo64(b, d);
  r[3] = V::Hi64(b, d);
}

// Elements in a lane of a block: two groups where m = 2.
template <int M>
static constexpr int kNmWide = M < 4 ? 4 : M;

// Element 4 q + v of every group as keys[v].
template <typename V, DType D, int M>
static inline void LoadKeys(const void* score, int q, typename V::Reg sign_counts,
                            typename V::Reg* keys) {
  for (int v = 0; v < 4; ++v) {
    typename V::Reg bits;
    if constexpr (D == DType::kF32) {
      const auto* p = static_cast<const int32_t*>(score);
      // A group of four is a part already: whole vectors, and StoreGrouped mends the order.
      bits = M <= 4 ? V::Load(p + v * V::kLanes) : V::LoadQuads(p + v * M + 4 * q, 4 * M);
    } else {
      const auto* p = static_cast<const uint16_t*>(score);
      bits = M <= 4 ? V::LoadHalf(p + v * V::kLanes) : V::LoadHalfQuads(p + v * M + 4 * q, 4 * M);
    }
    keys[v] = SortKey<V>(bits, sign_counts, V::Set1(InfinityBits(D)));
  }
  Transpose4<V>(keys);
}

// Unrolled, so that all keys and ranks are registers.
template <typename V, int I, int J, int End>
__attribute__((always_inline)) static inline void RankPairs(const typename V::Reg* keys,
                                                            typename V::Reg* ranks) {
  if constexpr (J < End) {
    const typename V::Mask larger = V::Greater(keys[J], keys[I]);
    ranks[I] = V::Raise(ranks[I], larger);
    ranks[J] = V::Lower(ranks[J], larger);
    RankPairs<V, I, J + 1, End>(keys, ranks);
  } else if constexpr (I + 2 < End) {
    RankPairs<V, I + 1, I + 2, End>(keys, ranks);
  }
}

// How many elements of its group beat each.
template <typename V, int M>
static inline void Rank(const typename V::Reg* keys, typename V::Reg* ranks) {
  for (int i = 0; i < kNmWide<M>; ++i) ranks[i] = V::Set1(i % M);
  if constexpr (M == 2) {
    RankPairs<V, 0, 1, 2>(keys, ranks);
    RankPairs<V, 0, 1, 2>(keys + 2, ranks + 2);
  } else if constexpr (M <= 8) {
    RankPairs<V, 0, 1, M>(keys, ranks);
  } else {
    // More than there are registers: four by four.
    for (int i = 0; i < M; i += 4) {
      typename V::Reg own[4];
      typename V::Reg rank[4];
      for (int k = 0; k < 4; ++k) own[k] = keys[i + k];
      for (int k = 0; k < 4; ++k) rank[k] = ranks[i + k];
      RankPairs<V, 0, 1, 4>(own, rank);
      for (int j = i + 4; j < M; ++j) {
        const typename V::Reg other = keys[j];
        typename V::Reg other_rank = ranks[j];
        for (int k = 0; k < 4; ++k) {
          const typename V::Mask larger = V::Greater(other, own[k]);
          rank[k] = V::Raise(rank[k], larger);
          other_rank = V::Lower(other_rank, larger);
        }
        ranks[j] = other_rank;
      }
      for (int k = 0; k < 4; ++k) ranks[i + k] = rank[k];
    }
  }
}

// kLanes groups of M scores (of two times two for M = 2).
template <typename V, DType D, int M>
static inline void MaskBlock(const void* score, typename V::Reg n, typename V::Reg sign_counts,
                             uint8_t* mask) {
  constexpr int kWords = kNmWide<M> / 4;
  typename V::Reg keys[kNmWide<M>];
  typename V::Reg ranks[kNmWide<M>];
  for (int q = 0; q < kWords; ++q) LoadKeys<V, D, M>(score, q, sign_counts, keys + 4 * q);
  Rank<V, M>(keys, ranks);
  typename V::Reg words[kWords];
  for (int q = 0; q < kWords; ++q) {
    words[q] = V::Set1(0);
    for (int v = 0; v < 4; ++v) {
      words[q] = V::Mark(words[q], V::Greater(n, ranks[4 * q + v]), V::Set1(1 << 8 * v));
    }
  }
  if constexpr (kWords == 1) {
    V::StoreGrouped(mask, words[0]);
  } else if constexpr (kWords == 2) {
    V::StoreQuads(mask, 32, V::Lo32(words[0], words[1]));
    V::StoreQuads(mask + 16, 32, V::Hi32(words[0], words[1]));
  } else {
    for (int q = 0; q < kWords; q += 4) {
      Transpose4<V>(words + q);
      for (int v = 0; v < 4; ++v) V::StoreQuads(mask + v * M + 4 * q, 4 * M, words[q + v]);
    }
  }
}

template <typename V, DType D, int M>
static void MaskRun(const void* score, int64_t count, int n, bool magnitude, uint8_t* mask) {
  constexpr int64_t kBlock = kNmWide<M> * V::kLanes;
  constexpr int64_t kBytes = static_cast<int64_t>(SizeOf(D));
  const auto* from = static_cast<const uint8_t*>(score);
  const typename V::Reg bound = V::Set1(n);
  const typename V::Reg sign_counts = V::Set1(magnitude ? 0 : -1);
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    MaskBlock<V, D, M>(from + i * kBytes, bound, sign_counts, mask + i);
  }
  if (i == count) return;
  // Padded with NaN, which beat no score before them; so a short group needs nothing more.
  alignas(64) uint8_t padded[kBlock * kBytes];
  alignas(64) uint8_t padded_mask[kBlock];
  std::memset(padded, 0xff, sizeof padded);
  std::memcpy(padded, from + i * kBytes, static_cast<size_t>((count - i) * kBytes));
  MaskBlock<V, D, M>(padded, bound, sign_counts, padded_mask);
  std::memcpy(mask + i, padded_mask, static_cast<size_t>(count - i));
}

// Down the columns: `rows` rows of a group (of two groups for M = 2) side by side, so nothing is
// transposed and a lane is a column.
template <typename V, int M>
static void MaskColumns(const NmColumns& job, int64_t row, int rows, int64_t cols) {
  constexpr int kWide = kNmWide<M>;
  const typename V::Reg bound = V::Set1(static_cast<int32_t>(job.n));
  const typename V::Reg sign_counts = V::Set1(job.magnitude ? 0 : -1);
  const typename V::Reg infinity = V::Set1(InfinityBits(job.dtype));
  const bool wide = job.dtype == DType::kF32;
  for (int64_t k = 0; k < cols; k += V::kLanes) {
    const int64_t count = cols - k < V::kLanes ? cols - k : V::kLanes;
    typename V::Reg keys[kWide];
    typename V::Reg ranks[kWide];
    for (int i = 0; i < kWide; ++i) {
      keys[i] = V::Set1(INT32_MIN);  // beyond the last row: beats nothing before it
      if (i >= rows) continue;
      const int64_t at = (row + i) * job.stride + k;
      const auto* p = static_cast<const int32_t*>(job.score) + at;
      const auto* half = static_cast<const uint16_t*>(job.score) + at;
      typename V::Reg bits;
      if (count == V::kLanes) {
        bits = wide ? V::Load(p) : V::LoadHalf(half);
      } else if (wide) {
        int32_t padded[V::kLanes] = {};
        std::memcpy(padded, p, static_cast<size_t>(count) * 4);
        bits = V::Load(padded);
      } else {
        uint16_t padded[V::kLanes] = {};
        std::memcpy(padded, half, static_cast<size_t>(count) * 2);
        bits = V::LoadHalf(padded);
      }
      keys[i] = SortKey<V>(bits, sign_counts, infinity);
    }
    Rank<V, M>(keys, ranks);
    for (int i = 0; i < rows; ++i) {
      uint8_t* out = job.mask + (row + i) * job.mask_stride + k;
      const typename V::Mask kept = V::Greater(bound, ranks[i]);
      if (count == V::kLanes) {
        V::StoreFlags(out, kept);
      } else {
        uint8_t flags[V::kLanes];
        V::StoreFlags(flags, kept);
        std::memcpy(out, flags, static_cast<size_t>(count));
      }
    }
  }
}

}  // namespace sparsekern
