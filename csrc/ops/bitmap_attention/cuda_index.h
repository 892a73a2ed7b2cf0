// SPDX-License-Identifier: Apache-2.0
// Index, bit and softmax arithmetic of bitmap_attention on CUDA, as functions that the host
// compiles too: tests/cpp runs a warp's lanes on them, so that only instructions and launches need
// a GPU to be tested.
//
// A warp multiplies tiles of 16 tokens with up to 8 query heads by mma.m16n8k16. Which channels the
// columns of an operand are is free as long as both operands agree, so each lane gets channels that
// lie one behind the other, whose kept values do too: of K a quarter of a row for two tokens, of V
// an eighth of a row for four. One sum over the lanes before it says where a lane's values begin;
// from there it walks, and needs no count of bits for a channel.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "formats/cuda_bitmap_kv.h"

namespace sparsekern::cuda {

constexpr int kKvTile = 16;  // tokens
constexpr int kKvHeads = 8;  // query heads of a warp
constexpr int kKvTilesOfPage = static_cast<int>(kBitmapKvTokens) / kKvTile;
constexpr float kKvLowest = -3.402823466e38f;
// Weights of a softmax are two 16-bit numbers to tensor cores. float16 has no room below 6e-8, so
// weights, at most 1, meet V so many times larger.
constexpr float kKvHalfWeightScale = 16384.0f;

// --- Tokens ---

// Pages of a sequence, and slots of a window, that a call may have: tokens are counted in 32 bits.
constexpr int64_t kKvMaxTablePages = int64_t{1} << 23, kKvMaxSlots = int64_t{1} << 29;

// What a call says of one sequence.
struct KvSequence {
  int length, window, start;  // tokens in pages, behind them, first attended to
  bool fits;                  // else nothing of it may be read, and there are no tokens
};

SPARSEKERN_HOST_DEVICE KvSequence KvSequenceOf(const KvPages& p, int64_t sequence,
                                               const int64_t* window_lengths, int64_t window_slots,
                                               const int64_t* starts) {
  const int64_t length = p.lengths[sequence];
  const int64_t window = window_lengths != nullptr ? window_lengths[sequence] : 0;
  const int64_t start = starts != nullptr ? starts[sequence] : 0;
  if (!KvFits(p, length, 0) || window < 0 || window > window_slots) {
    return KvSequence{0, 0, 0, false};
  }
  const int64_t all = length + window;
  return KvSequence{static_cast<int>(length), static_cast<int>(window),
                    static_cast<int>(start < 0     ? 0
                                     : start > all ? all
                                                   : start),
                    true};
}

// Tiles of a sequence: first those of its pages, then those of its window.
SPARSEKERN_HOST_DEVICE int KvPageTiles(const KvSequence& s) {
  return (s.length + kKvTile - 1) / kKvTile;
}
SPARSEKERN_HOST_DEVICE int KvTileFirst(const KvSequence& s, int tile) {
  const int pages = KvPageTiles(s);
  return tile < pages ? tile * kKvTile : s.length + (tile - pages) * kKvTile;
}

// The rows of a tile whose tokens are there and attended to.
struct KvRows {
  int begin, end;
  SPARSEKERN_HOST_DEVICE bool Have(int row) const { return row >= begin && row < end; }
};
SPARSEKERN_HOST_DEVICE KvRows KvRowsOf(const KvSequence& s, int tile) {
  const int first = KvTileFirst(s, tile);
  const int end = tile < KvPageTiles(s) ? s.length : s.length + s.window;
  return KvRows{s.start - first, end - first};
}

struct KvSpan {
  int begin, end;
};

// The tiles that a part of the work takes: equal shares of those with tokens attended to.
SPARSEKERN_HOST_DEVICE KvSpan KvPartTiles(const KvSequence& s, int64_t part, int64_t parts) {
  const int pages = KvPageTiles(s);
  const int all = pages + (s.window + kKvTile - 1) / kKvTile;
  const int first = s.start >= s.length + s.window ? all
                    : s.start >= s.length          ? pages + (s.start - s.length) / kKvTile
                                                   : s.start / kKvTile;
  const int64_t n = all - first;
  return KvSpan{first + static_cast<int>(n * part / parts),
                first + static_cast<int>(n * (part + 1) / parts)};
}

// --- Values in shared memory ---

// Rows of an even number of 16 bytes would begin in the same few banks: they get 16 bytes more.
// Others lie as in the page, since a copy of 16 bytes could not begin where they do.
SPARSEKERN_HOST_DEVICE bool KvPadded(int row_bytes) { return row_bytes % 32 == 0; }
SPARSEKERN_HOST_DEVICE int KvRowStride(int row_bytes) {
  return KvPadded(row_bytes) ? row_bytes + 16 : row_bytes;
}
SPARSEKERN_HOST_DEVICE int KvTileBytes(int row_bytes) { return kKvTile * KvRowStride(row_bytes); }
// A tile is as many copies of 16 bytes as a row has bytes. Where copy i goes; `reciprocal` is
// KvReciprocal(row_bytes).
SPARSEKERN_HOST_DEVICE uint32_t KvReciprocal(int row_bytes) {
  const auto copies = static_cast<uint32_t>(row_bytes) / 16;
  return KvPadded(row_bytes) ? (65536 + copies - 1) / copies : 0;
}
SPARSEKERN_HOST_DEVICE int KvCopyTo(int i, uint32_t reciprocal) {
  return 16 * (i + static_cast<int>(static_cast<uint32_t>(i) * reciprocal >> 16));
}
SPARSEKERN_HOST_DEVICE int KvStageBytes(const KvPages& p) {
  return KvTileBytes(p.k_keep * p.element) + KvTileBytes(p.v_keep * p.element);
}
// Of a warp: two tiles of K and V out of pages, or one of the window, and what a corrupt mask makes
// it read behind the last row.
SPARSEKERN_HOST_DEVICE int KvWarpBytes(const KvPages& p) {
  const int pages = 2 * KvStageBytes(p), dense = 2 * KvTileBytes(p.head_dim * p.element);
  return (pages > dense ? pages : dense) + p.head_dim * p.element;
}

// --- Lanes ---

// DP: head_dim rounded up to 64, 128 or 256. Lane 4 g + q of a warp has:
template <int DP>
using KvKBits = std::conditional_t<DP == 256, uint64_t, uint32_t>;  // DP / 4 of them
using KvVBits = uint32_t;                                           // DP / 8

// ... of K the channels from here on, for the tokens of two rows;
template <int DP>
SPARSEKERN_HOST_DEVICE int KvKChannel(int lane) {
  return lane % 4 * (DP / 4);
}
SPARSEKERN_HOST_DEVICE int KvKRow(int lane, int i) { return lane / 4 + 8 * i; }
// ... of V the channels from here on, for the tokens of four rows;
template <int DP>
SPARSEKERN_HOST_DEVICE int KvVChannel(int lane) {
  return lane / 4 * (DP / 8);
}
SPARSEKERN_HOST_DEVICE int KvVRow(int lane, int i) { return lane % 4 * 2 + i % 2 + i / 2 * 8; }
// ... the scores s[2 i + j] of row KvKRow(lane, i) and head KvHead(lane, j), and the sums
// acc[i][2 j + k] of channel KvVChannel + 2 i + j and head KvHead(lane, k).
SPARSEKERN_HOST_DEVICE int KvHead(int lane, int j) { return lane % 4 * 2 + j; }
// ... of q, as operand B, the head of its number / 4 and the channels of its K.

// Bits first .. first + Width of a row's mask, zeros from head_dim on.
template <int Width, typename Bits>
SPARSEKERN_HOST_DEVICE Bits KvMaskBits(const uint8_t* mask, int head_dim, int first) {
  Bits bits = 0;
  if (first >= head_dim) return bits;
  if (head_dim % Width == 0) {
    std::memcpy(&bits, __builtin_assume_aligned(mask + first / 8, Width / 8), Width / 8);
    return bits;
  }
  const int bytes = (head_dim - first < Width ? head_dim - first : Width) / 8;
  SPARSEKERN_ROLLED
  for (int i = 0; i < bytes; ++i) bits |= static_cast<Bits>(mask[first / 8 + i]) << (8 * i);
  return bits;
}
// The same for a row of which all is kept.
template <int Width, typename Bits>
SPARSEKERN_HOST_DEVICE Bits KvAllBits(int head_dim, int first) {
  const int bits = head_dim - first;
  if (bits <= 0) return 0;
  return ~Bits{0} >> (8 * sizeof(Bits) - (bits < Width ? bits : Width));
}

// The sum of `counts`, several numbers side by side in one word, over the lanes before one's own.
// up(x, n): x of the n-th lane before, 0 where there is none. Lanes: how many there are in a row.
template <int Lanes, typename Word, typename Up>
SPARSEKERN_EMULATED Word KvSumBefore(const Word& counts, const Up& up) {
  Word sum = up(counts, 1);
  for (int n = 1; n < Lanes - 1; n *= 2) sum = sum + up(sum, n);
  return sum;
}

// Bit c of a lane's bits, where it is: 0 or not.
SPARSEKERN_HOST_DEVICE uint32_t KvBit(uint32_t bits, int c) { return bits & uint32_t{1} << c; }
SPARSEKERN_HOST_DEVICE uint32_t KvBit(uint64_t bits, int c) {
  return KvBit(static_cast<uint32_t>(bits >> (c / 32 * 32)), c % 32);
}

// What a stream of kept values has for the next channel: its bits, and a step; or 0 where `kept` is
// 0. Kernels have a stream of their own besides this one.
template <typename Element>
SPARSEKERN_HOST_DEVICE uint32_t KvTake(const Element*& next, uint32_t kept) {
  uint32_t bits = 0;
  if (kept != 0) {
    bits = *next;
    ++next;
  }
  return bits;
}

// Two elements of 16 bits in a register.
SPARSEKERN_HOST_DEVICE uint32_t KvPair(uint32_t low, uint32_t high) { return low | high << 16; }

// Operand A of step i of 16 channels of K: rows are tokens. next, bits: of the lane's two rows.
template <typename Stream, typename Bits>
SPARSEKERN_EMULATED void KvKFragment(Stream (&next)[2], const Bits (&bits)[2], int i,
                                     uint32_t (&a)[4]) {
  for (int r = 0; r < 4; ++r) {
    const int row = r % 2, channel = 4 * i + r / 2 * 2;
    const uint32_t low = KvTake(next[row], KvBit(bits[row], channel));
    a[r] = KvPair(low, KvTake(next[row], KvBit(bits[row], channel + 1)));
  }
}

// Operand A of step i of 16 channels of V: rows are channels, columns the tile's tokens. next,
// bits: of the lane's four rows of V.
template <typename Stream>
SPARSEKERN_EMULATED void KvVFragment(Stream (&next)[4], const KvVBits (&bits)[4], int i,
                                     uint32_t (&a)[4]) {
  for (int c = 0; c < 2; ++c) {
    for (int r = 0; r < 2; ++r) {
      const uint32_t low = KvTake(next[2 * r], KvBit(bits[2 * r], 2 * i + c));
      const uint32_t high = KvTake(next[2 * r + 1], KvBit(bits[2 * r + 1], 2 * i + c));
      a[2 * r + c] = KvPair(low, high);
    }
  }
}

// --- Softmax ---

SPARSEKERN_HOST_DEVICE float KvScore(float product, float scale, float softcap) {
  const float s = product * scale;
  return softcap == 0.0f ? s : softcap * tanhf(s / softcap);
}

// The sum of weights exp(score - m) and the maximum that they are relative to. m is finite or +inf.
struct KvWeights {
  float m, sum;
};

// Weights of a tile's tokens for one head, as one lane has them: `top` is the largest of their
// scores (and of other lanes'), the scores become weights, and what was summed up before is to be
// multiplied by the answer.
template <int N>
SPARSEKERN_HOST_DEVICE float KvRaise(KvWeights* w, float top, float (&scores)[N]) {
  const float m = top > w->m ? top : w->m;
  const float move = expf(w->m - m);
  w->m = m;
  w->sum *= move;
  for (int i = 0; i < N; ++i) {
    scores[i] = expf(scores[i] - m);
    w->sum += scores[i];
  }
  return move;
}

// The parts of a sequence become one: most is the largest m; what a part counts.
SPARSEKERN_HOST_DEVICE float KvPartFactor(const KvWeights& part, float most) {
  return part.sum == 0.0f ? 0.0f : expf(part.m - most);  // 0: nothing attended to, or all -inf
}

// What the sum over all values is multiplied by, and the log-sum-exp. attends: whether the sequence
// has a token attended to at all.
struct KvResult {
  float factor, lse;
};
SPARSEKERN_HOST_DEVICE KvResult KvFinish(float most, float total, bool attends) {
  constexpr float kNaN = __builtin_nanf("");
  if (most == kKvLowest && total == total) {  // no score beyond -inf: of nothing, or 0 / 0
    return KvResult{attends ? kNaN : 0.0f, -__builtin_inff()};
  }
  return KvResult{1.0f / total, most + logf(total)};
}

}  // namespace sparsekern::cuda
