// SPDX-License-Identifier: Apache-2.0
// Dense weights into panels of the nm format, over the vector type of generic.h. `static`: as
// there.
//
// A lane is a row of a panel and a vector a column, so that what is kept is found as a mask is
// (Rank), and what a slot of the panel gets is chosen lane by lane among the columns that can be
// there: slot j of a group holds column j to m - n + j. That is n (m - n + 1) pairs of two blends
// and a comparison a group, and no lane ever leaves its place. With a mask given, "kept" is the
// score, so the rule for groups that keep too few, the lowest others, is that for ties.
//
// A block of 16 rows and 32 columns is copied line by line into the first-level cache before
// anything else: rows are often a power of two apart and meet in one set of it, so that no line may
// be needed twice. The limit is memory: 4 bytes a weight read, and for 2:8 in fp32 1.1 written.
//
// V offers besides, over int32 lanes: Store; Or; ShiftLeft(v, count); Equal; Any(a, b), the mask of
// lanes whose a & b is not 0; Flags, those whose byte is not 0; None(mask).
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/nm_mask/generic.h"

namespace sparsekern {

constexpr int kNmFlagWords = kNmBlockCols / 4;

// 16 rows and 32 columns of W, [column][row]: scores, and the elements that are stored, those of 16
// bits in the upper half.
struct NmBlock {
  alignas(64) int32_t keys[kNmBlockCols * kNmLanes];
  alignas(64) int32_t elements[kNmBlockCols * kNmLanes];
  // Of a mask: bytes, [column][row], or, where its rows are what is contiguous, words of four
  // columns, [column / 4][row]. (And this way blocks are no power of two apart, whose stores and
  // loads the processor confuses.)
  alignas(64) int32_t flags[kNmFlagWords * kNmLanes];
};

// Where a panel is written next.
struct NmCursor {
  alignas(64) uint32_t open[kNmLanes];  // the words that are not full yet, one a row
  int shift;                            // bits that they hold
  uint8_t* values;
  uint8_t* words;
};

// kAll elements next to each other, those from `count` on 0. A length that the compiler knows: a
// call of memcpy for 16 bytes takes longer than all else that happens to them.
template <int kAll>
static inline void CopyElements(const NmPackJob& job, int64_t at, int64_t count, int32_t* out) {
  const auto* from = static_cast<const int32_t*>(job.dense) + at;
  const auto* half = static_cast<const uint16_t*>(job.dense) + at;
  const bool wide = job.dtype == DType::kF32;
  if (count >= kAll) {
    if (wide) {
      std::memcpy(out, from, kAll * 4);
    } else {
      for (int i = 0; i < kAll; ++i) out[i] = static_cast<int32_t>(uint32_t{half[i]} << 16);
    }
    return;
  }
  for (int i = 0; i < kAll; ++i) {
    out[i] = i >= count ? 0 : wide ? from[i] : static_cast<int32_t>(uint32_t{half[i]} << 16);
  }
}

template <int kAll>
static inline void CopyFlags(const uint8_t* from, int64_t count, uint8_t* out) {
  if (count >= kAll) {
    std::memcpy(out, from, kAll);
    return;
  }
  for (int i = 0; i < kAll; ++i) out[i] = i >= count ? 0 : from[i];
}

// Into the second-level cache: of the first, lines a power of two apart take few sets.
static inline void Prefetch(const void* base, int64_t byte) {
  __builtin_prefetch(static_cast<const char*>(base) + byte, 0, 2);
}

// [16 rows][32 columns], rows `stride` apart, to [32][16].
template <typename V>
static inline void TurnBlock(const int32_t* rows, int64_t stride, int columns, int32_t* out) {
  for (int lane = 0; lane < kNmLanes; lane += V::kLanes) {
    for (int c = 0; c < columns; c += 4) {
      // Part b of register v is row 4 b + v.
      typename V::Reg r[4];
      for (int v = 0; v < 4; ++v) {
        r[v] = V::LoadQuads(rows + (lane + v) * stride + c, 4 * stride);
      }
      Transpose4<V>(r);
      for (int v = 0; v < 4; ++v) V::Store(out + (c + v) * kNmLanes + lane, r[v]);
    }
  }
}

// Where a row of memory runs along the panels, blocks of several are loaded side by side, and those
// of a page of fp32 come before the next columns: else 32 rows are 32 pages for a line of each.
constexpr int kPanelsTogether = 4;
constexpr int64_t kStretchPanels = 64;

// The rows of `panels` panels from `row` on, and columns from `k` on; what is beyond the matrix
// is 0.
template <typename V>
static inline void LoadElements(const NmPackJob& job, int64_t row, int panels, int64_t k,
                                NmBlock* blocks) {
  const int64_t rows = job.layout.rows - row, cols = job.layout.cols - k;
  if (job.row_stride == 1) {
    const auto element = static_cast<int64_t>(SizeOf(job.dtype));
    for (int c = 0; c < kNmBlockCols; ++c) {
      const int64_t at = row + (k + c) * job.col_stride;
      for (int p = 0; p < panels; ++p) {
        CopyElements<kNmLanes>(job, at + p * kNmLanes, c < cols ? rows - p * kNmLanes : 0,
                               blocks[p].elements + c * kNmLanes);
        if (c + kNmBlockCols < cols) {
          Prefetch(job.dense, (at + p * kNmLanes + kNmBlockCols * job.col_stride) * element);
        }
      }
    }
    return;
  }
  constexpr int kStride = kNmBlockCols + 4;  // not a power of two
  int32_t lines[kNmLanes * kStride];
  for (int r = 0; r < kNmLanes; ++r) {
    CopyElements<kNmBlockCols>(job, (row + r) * job.row_stride + k, r < rows ? cols : 0,
                               lines + r * kStride);
  }
  TurnBlock<V>(lines, kStride, kNmBlockCols, blocks->elements);
}

// The flags of a mask, not yet spread.
template <typename V>
static inline void LoadFlags(const NmPackJob& job, int64_t row, int panels, int64_t k,
                             NmBlock* blocks) {
  const int64_t rows = job.layout.rows - row, cols = job.layout.cols - k;
  if (job.mask_row_stride == 1) {
    for (int c = 0; c < kNmBlockCols; ++c) {
      const int64_t at = row + (k + c) * job.mask_col_stride;
      if (c + kNmBlockCols < cols) Prefetch(job.mask, at + kNmBlockCols * job.mask_col_stride);
      for (int p = 0; p < panels; ++p) {
        CopyFlags<kNmLanes>(job.mask + at + p * kNmLanes, c < cols ? rows - p * kNmLanes : 0,
                            reinterpret_cast<uint8_t*>(blocks[p].flags) + c * kNmLanes);
      }
    }
    return;
  }
  constexpr int kStride = kNmFlagWords + 4;
  int32_t lines[kNmLanes * kStride];
  for (int p = 0; p < panels; ++p) {
    for (int r = 0; r < kNmLanes; ++r) {
      const int64_t lane = p * kNmLanes + r;
      CopyFlags<kNmBlockCols>(job.mask + (row + lane) * job.mask_row_stride + k,
                              lane < rows ? cols : 0,
                              reinterpret_cast<uint8_t*>(lines + r * kStride));
    }
    TurnBlock<V>(lines, kStride, kNmFlagWords, blocks[p].flags);
  }
}

// Keys from the flags: 1 where one is set. Elements that they leave out become 0.
template <typename V>
static inline void ScoreFlags(const NmPackJob& job, NmBlock* block) {
  const typename V::Reg one = V::Set1(1), zero = V::Set1(0);
  const auto put = [&](int at, typename V::Mask kept) __attribute__((always_inline)) {
    V::Store(block->keys + at, V::Where(kept, one, zero));
    V::Store(block->elements + at, V::Where(kept, V::Load(block->elements + at), zero));
  };
  if (job.mask_row_stride == 1) {
    const auto* flags = reinterpret_cast<const uint8_t*>(block->flags);
    for (int at = 0; at < kNmBlockCols * kNmLanes; at += V::kLanes) put(at, V::Flags(flags + at));
    return;
  }
  for (int at = 0; at < kNmFlagWords * kNmLanes; at += V::kLanes) {
    const typename V::Reg four = V::Load(block->flags + at);
    for (int i = 0; i < 4; ++i) {
      const auto byte = static_cast<int32_t>(uint32_t{0xff} << 8 * i);
      const int column = at / kNmLanes * 4 + i;
      put(column * kNmLanes + at % kNmLanes, V::Any(four, V::Set1(byte)));
    }
  }
}

// Keys from the elements' magnitudes; what is beyond the matrix goes last.
template <typename V>
static inline void ScoreElements(const NmPackJob& job, int64_t k, NmBlock* block) {
  const int64_t cols = job.layout.cols - k;
  const typename V::Reg infinity = V::Set1(InfinityBits(job.dtype)), unsigned_scores = V::Set1(0);
  for (int c = 0; c < kNmBlockCols; ++c) {
    for (int lane = 0; lane < kNmLanes; lane += V::kLanes) {
      const int at = c * kNmLanes + lane;
      const typename V::Reg key =
          SortKey<V>(V::Load(block->elements + at), unsigned_scores, infinity);
      V::Store(block->keys + at, c < cols ? key : V::Set1(INT32_MIN));
    }
  }
}

// The first `groups` groups of a block to `cursor`; false where a mask keeps more than n.
template <typename V, int M>
static bool PackBlock(const NmPackJob& job, const NmBlock& block, int groups, int32_t* values,
                      NmCursor* cursor) {
  constexpr int kWide = kNmWide<M>;
  const int n = job.layout.n, window = job.layout.window, field_bits = job.layout.field_bits;
  const typename V::Reg bound = V::Set1(n), zero = V::Set1(0);
  bool sound = true;
  int shift = 0;
  uint8_t* words = nullptr;
  for (int lane = 0; lane < kNmLanes; lane += V::kLanes) {
    typename V::Reg word = V::Load(reinterpret_cast<int32_t*>(cursor->open) + lane);
    int32_t* out = values + lane;
    shift = cursor->shift;
    words = cursor->words + 4 * lane;
    for (int first = 0; first < groups * M; first += kWide) {
      const int32_t* keys = block.keys + first * kNmLanes + lane;
      const int32_t* elements = block.elements + first * kNmLanes + lane;
      typename V::Reg key[kWide];
      typename V::Reg rank[kWide];
      for (int c = 0; c < kWide; ++c) key[c] = V::Load(keys + c * kNmLanes);
      Rank<V, M>(key, rank);
      alignas(64) int32_t slot[kWide * V::kLanes];  // of each column; -1: not kept
      for (int g = 0; g < kWide; g += M) {
        typename V::Reg next = zero;
        for (int c = g; c < g + M; ++c) {
          const typename V::Mask kept = V::Greater(bound, rank[c]);
          V::Store(slot + c * V::kLanes, V::Where(kept, next, V::Set1(-1)));
          next = V::Raise(next, kept);
        }
        if (job.mask != nullptr) {
          typename V::Reg left = bound;
          for (int c = g; c < g + M; ++c) left = V::Sub(left, key[c]);
          sound &= V::None(V::Greater(zero, left));
        }
      }
      for (int g = 0; g < kWide; g += M) {
        const int base = (first + g) % window;
        for (int j = 0; j < n; ++j) {
          const typename V::Reg own = V::Set1(j);
          int c = M - n + j;
          typename V::Reg value = V::Load(elements + (g + c) * kNmLanes);
          typename V::Reg column = V::Set1(base + c);
          while (c-- > j) {
            const typename V::Mask here = V::Equal(V::Load(slot + (g + c) * V::kLanes), own);
            value = V::Where(here, V::Load(elements + (g + c) * kNmLanes), value);
            column = V::Where(here, V::Set1(base + c), column);
          }
          V::Store(out, value);
          out += kNmLanes;
          word = V::Or(word, V::ShiftLeft(column, shift));
          shift += field_bits;
          if (shift == 32) {
            V::Store(reinterpret_cast<int32_t*>(words), word);
            words += 4 * kNmLanes;
            word = zero;
            shift = 0;
          }
        }
      }
    }
    V::Store(reinterpret_cast<int32_t*>(cursor->open) + lane, word);
  }
  cursor->shift = shift;
  cursor->words = words - 4 * (kNmLanes - V::kLanes);
  return sound;
}

// Panels begin to end, block by block, the panels of a stretch of memory side by side.
template <typename V>
static bool PackPanels(const NmPackJob& job, int64_t begin, int64_t end) {
  const NmStructure& s = job.layout;
  using Pack = bool (*)(const NmPackJob&, const NmBlock&, int, int32_t*, NmCursor*);
  const Pack pack = s.m == 2    ? PackBlock<V, 2>
                    : s.m == 4  ? PackBlock<V, 4>
                    : s.m == 8  ? PackBlock<V, 8>
                    : s.m == 16 ? PackBlock<V, 16>
                                : PackBlock<V, 32>;
  const bool down = job.row_stride == 1;
  const int64_t stretch = down ? kStretchPanels : 1, together = down ? kPanelsTogether : 1;
  const auto element = static_cast<int64_t>(SizeOf(job.dtype));
  const int64_t padded = (s.cols + s.window - 1) / s.window * s.window;
  NmBlock blocks[kPanelsTogether];
  int32_t narrow[kNmBlockCols * kNmLanes];  // 31:32 keeps most
  NmCursor cursors[kStretchPanels];
  bool sound = true;
  for (int64_t first = begin; first < end; first += stretch) {
    const int64_t last = end - first < stretch ? end : first + stretch;
    for (int64_t panel = first; panel < last; ++panel) {
      NmCursor& cursor = cursors[panel - first];
      std::memset(cursor.open, 0, sizeof cursor.open);
      cursor.shift = 0;
      cursor.values = job.values + panel * s.steps * kNmLanes * element;
      cursor.words = job.words + panel * s.words * kNmLanes * 4;
    }
    for (int64_t k = 0; k < padded; k += kNmBlockCols) {
      const int64_t columns = padded - k < kNmBlockCols ? padded - k : kNmBlockCols;
      const int groups = static_cast<int>(columns) / s.m;
      for (int64_t panel = first; panel < last; panel += together) {
        const int panels = static_cast<int>(last - panel < together ? last - panel : together);
        LoadElements<V>(job, panel * kNmLanes, panels, k, blocks);
        if (job.mask != nullptr) LoadFlags<V>(job, panel * kNmLanes, panels, k, blocks);
        for (int p = 0; p < panels; ++p) {
          NmCursor& cursor = cursors[panel - first + p];
          if (job.mask != nullptr) {
            ScoreFlags<V>(job, blocks + p);
          } else {
            ScoreElements<V>(job, k, blocks + p);
          }
          const int64_t count = int64_t{groups} * s.n * kNmLanes;
          if (job.dtype == DType::kF32) {
            auto* out = reinterpret_cast<int32_t*>(cursor.values);
            sound &= pack(job, blocks[p], groups, out, &cursor);
          } else {
            sound &= pack(job, blocks[p], groups, narrow, &cursor);
            auto* out = reinterpret_cast<uint16_t*>(cursor.values);
            for (int64_t i = 0; i < count; ++i) {
              out[i] = static_cast<uint16_t>(static_cast<uint32_t>(narrow[i]) >> 16);
            }
          }
          cursor.values += count * element;
        }
      }
    }
    for (int64_t panel = first; panel < last; ++panel) {
      const NmCursor& cursor = cursors[panel - first];
      if (cursor.shift != 0) std::memcpy(cursor.words, cursor.open, sizeof cursor.open);
    }
  }
  return sound;
}

}  // namespace sparsekern
