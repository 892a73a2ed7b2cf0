// SPDX-License-Identifier: Apache-2.0
// The loops of bitmap_linear, over a vector type V (base/simd/conversion.h, expansion.h).
//
// Decode is memory-bound up to about 60 % sparsity: a weight is a bit, and 16 or 8 more where it is
// kept. A slice, 16 rows times 64 columns, loads its word of x once; per row the kept values, which
// lie one behind the other, are expanded under the bits. What limits AVX-512 where the bytes are
// fewer are slots of ports 0 and 5: for 16 weights, kept or not, 3.5 of port 5 (widen 1, expand 2,
// half of the masks 1) in f16, and 5.5 of both in bf16 and int8, which are expanded before they are
// widened (vector_x86_avx512slices.h). VBMI2 has an instruction for that: 3.5 of both in bf16 and
// f16, 3.75 in int8 (vector_x86_avx512vbmi2.h).
//
// Batches are bound by multiply-adds: the bits of a slice become column numbers once, and each kept
// weight is broadcast to all rows of x, as csr does.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/simd/batch.h"
#include "base/simd/conversion.h"
#include "base/simd/expansion.h"
#include "ops/bitmap_linear/kernels.h"

namespace sparsekern {

enum : int { kSliceValues = kBitmapLanes * kBitmapWord };

static inline int CountWords(const uint64_t* words) {
  int count = 0;
  for (int r = 0; r < kBitmapLanes; ++r) count += __builtin_popcountll(words[r]);
  return count;
}

// The words of a slice, in place where they are aligned as words are.
static inline const uint64_t* WordsOf(const uint8_t* bitmap, uint64_t* copy) {
  if (reinterpret_cast<uintptr_t>(bitmap) % alignof(uint64_t) == 0) {
    return reinterpret_cast<const uint64_t*>(bitmap);
  }
  std::memcpy(copy, bitmap, sizeof(uint64_t) * kBitmapLanes);
  return copy;
}

// Whether x is in the order of V::Arrange, and zeros are multiplied.
template <typename V, DType D>
static constexpr bool kArranged = kSpreadsWords<V, D> || kSpreadsSlices<V, D>;

// Elements from a value on that are read at once.
template <typename V, DType D>
static constexpr int kReads = kArranged<V, D> ? 64 / static_cast<int>(kBytesOf<D>) : V::kLanes;

// The values of one slice after the other, such that whole vectors may be read from any of them on:
// in the array, or, near its end, in a copy with zeros behind.
template <typename V, DType D>
class SliceValues {
 public:
  explicit SliceValues(const BitmapValues& values) : values_(values) {}

  const uint8_t* Begin(const uint64_t* words) {
    // So many a slice can hold at most: only the last slices need to be counted.
    in_place_ = values_.left >= kSliceValues + kReads<V, D>;
    if (in_place_) return values_.next;
    const int64_t count = CountWords(words);
    const int64_t present = count < values_.left ? count : values_.left;
    std::memset(copy_, 0, sizeof copy_);
    if (present > 0) {
      std::memcpy(copy_, values_.next, static_cast<size_t>(present) * kBytesOf<D>);
    }
    values_.next += present * kBytesOf<D>;
    values_.left -= present;
    return copy_;
  }

  // `p`: behind the slice's values.
  void End(const uint8_t* p) {
    if (!in_place_) return;
    values_.left -= (p - values_.next) / kBytesOf<D>;
    values_.next = p;
  }

 private:
  BitmapValues values_;
  bool in_place_ = false;
  alignas(64) uint8_t copy_[(kSliceValues + kReads<V, D>)*kBytesOf<D>];
};

// Sums of 16 rows, kLanes lanes each, rows `stride` floats apart, to y[16].
template <typename V, DType D>
static inline void StoreSums(const float* sums, int64_t stride, float* y) {
  for (int r = 0; r < kBitmapLanes; r += V::kLanes) {
    typename V::Reg lanes[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i) lanes[i] = V::Load(sums + (r + i) * stride);
    V::Transpose(lanes);
    for (int half = V::kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] = V::Add(lanes[i], lanes[i + half]);
    }
    if constexpr (kArranged<V, D>) {
      lanes[0] = V::Mul(lanes[0], V::Set1(V::template kWordScale<D>));
    }
    V::Store(y + r, lanes[0]);
  }
}

// Ahead of the values that are being read: the processor's own prefetching stops at each page.
template <DType D>
static inline void PrefetchRow(const uint8_t* p) {
  __builtin_prefetch(p + 2048);
  if constexpr (D == DType::kF32) __builtin_prefetch(p + 2048 + 64);
}
static inline void PrefetchSlice(const uint8_t* bitmap) {
  __builtin_prefetch(bitmap + 2048);
  __builtin_prefetch(bitmap + 2048 + 64);
}

// A slice and one row of x. A word's three steps take longer than the processor looks ahead, so
// those of neighbouring rows stand side by side.
template <typename V, DType D>
static inline __attribute__((always_inline)) void DecodeSlice(
    const uint64_t* words, const float* x, const uint8_t** p,
    typename V::Reg (&acc)[kBitmapLanes]) {
  constexpr int kAhead = 5;  // rows that are expanded before they are multiplied
  using Slice = typename V::template Slice<D>;
  const Slice slice(words);
  typename Slice::Controls controls;
  typename Slice::Values values[kAhead];
  Unroll<kBitmapLanes + kAhead>([&]<int r>() __attribute__((always_inline)) {
    if constexpr (r >= kAhead) {
      typename V::Reg weights[kPieces<V>];
      Slice::Widen(values[r % kAhead], weights);
      asm("" : "+r"(x));  // x stays in memory: registers are short
      for (int i = 0; i < kPieces<V>; ++i) {
        acc[r - kAhead] = V::Fma(weights[i], V::Load(x + i * V::kLanes), acc[r - kAhead]);
      }
    }
    if constexpr (r >= 1 && r <= kBitmapLanes) {
      PrefetchRow<D>(*p);
      values[(r - 1) % kAhead] = slice.Expand(controls, r - 1, p);
    }
    if constexpr (r < kBitmapLanes) controls = slice.ControlsOf(r);
  });
}

// One row of x. Sums stay in registers where sixteen of them fit beside x.
template <typename V, DType D>
static void BitmapDecode(const BitmapPanel& panel, const float* x, int64_t, int, float* y,
                         int64_t) {
  using Reg = typename V::Reg;
  constexpr bool kInRegisters = V::kLanes == 16;
  alignas(64) float sums[kBitmapLanes * V::kLanes] = {};
  Reg acc[kBitmapLanes];
  if constexpr (kInRegisters) {
#pragma GCC unroll 16
    for (Reg& sum : acc) sum = V::Zero();
  }
  SliceValues<V, D> values(panel.values);
  const uint8_t* bitmap = panel.bitmap;
  for (int64_t w = 0; w < panel.words; ++w) {
    uint64_t copy[kBitmapLanes];
    const uint64_t* words = WordsOf(bitmap, copy);
    PrefetchSlice(bitmap);
    const uint8_t* p = values.Begin(words);
    const auto row = [&](int r, Reg sum) __attribute__((always_inline)) {
      PrefetchRow<D>(p);
      if constexpr (kSpreadsWords<V, D>) {
        Reg weights[kPieces<V>];
        V::template SpreadWord<D>(p, words[r], weights);
        for (int i = 0; i < kPieces<V>; ++i) {
          sum = V::Fma(weights[i], V::Load(x + i * V::kLanes), sum);
        }
        p += __builtin_popcountll(words[r]) * kBytesOf<D>;
        return sum;
      }
      Unroll<kPieces<V>>([&]<int i>() __attribute__((always_inline)) {
        const typename V::Lanes lanes = V::template Piece<i>(words + r);
        const Reg weights = V::Spread(LoadAs<V, D>(p, 0), lanes);
        sum = V::FmaKept(weights, V::Load(x + i * V::kLanes), sum, lanes);
        p += V::CountKept(PieceBits<V, i>(words[r])) * kBytesOf<D>;
      });
      return sum;
    };
    if constexpr (kSpreadsSlices<V, D>) {
      DecodeSlice<V, D>(words, x, &p, acc);
    } else if constexpr (kInRegisters) {
#pragma GCC unroll 16
      for (int r = 0; r < kBitmapLanes; ++r) acc[r] = row(r, acc[r]);
    } else {
      for (int r = 0; r < kBitmapLanes; ++r) {
        V::Store(sums + r * V::kLanes, row(r, V::Load(sums + r * V::kLanes)));
      }
    }
    values.End(p);
    bitmap += kBitmapLanes * sizeof(uint64_t);
    x += kBitmapWord;
  }
  if constexpr (kInRegisters) {
#pragma GCC unroll 16
    for (int r = 0; r < kBitmapLanes; ++r) V::Store(sums + r * V::kLanes, acc[r]);
  }
  StoreSums<V, D>(sums, V::kLanes, y);
}

struct NoSlice {
  explicit NoSlice(const uint64_t*) {}
};
template <typename V, DType D>
struct SliceType {
  using Type = NoSlice;
};
template <typename V, DType D>
  requires kSpreadsSlices<V, D>
struct SliceType<V, D> {
  using Type = typename V::template Slice<D>;
};
template <typename V, DType D>
using SliceOf = typename SliceType<V, D>::Type;

// Two to sixteen rows of x: a row of W is expanded once for all of them.
template <typename V, DType D>
static void BitmapDecodeFew(const BitmapPanel& panel, const float* x, int64_t x_stride, int x_rows,
                            float* y, int64_t y_stride) {
  using Reg = typename V::Reg;
  // [row of W][row of x][lane]
  alignas(64) float sums[kBitmapLanes * kBitmapMaxDecodeRows * V::kLanes];
  const int64_t stride = static_cast<int64_t>(x_rows) * V::kLanes;
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(kBitmapLanes * stride));
  SliceValues<V, D> values(panel.values);
  const uint8_t* bitmap = panel.bitmap;
  for (int64_t w = 0; w < panel.words; ++w) {
    uint64_t copy[kBitmapLanes];
    const uint64_t* words = WordsOf(bitmap, copy);
    PrefetchSlice(bitmap);
    const uint8_t* p = values.Begin(words);
    [[maybe_unused]] const SliceOf<V, D> slice(words);
    for (int r = 0; r < kBitmapLanes; ++r) {
      PrefetchRow<D>(p);
      Reg weights[kPieces<V>];
      [[maybe_unused]] typename V::Lanes lanes[kPieces<V>];
      if constexpr (kSpreadsSlices<V, D>) {
        slice.Widen(slice.Expand(slice.ControlsOf(r), r, &p), weights);
      } else if constexpr (kSpreadsWords<V, D>) {
        V::template SpreadWord<D>(p, words[r], weights);
        p += __builtin_popcountll(words[r]) * kBytesOf<D>;
      } else {
        Unroll<kPieces<V>>([&]<int i>() __attribute__((always_inline)) {
          lanes[i] = V::template Piece<i>(words + r);
          weights[i] = V::Spread(LoadAs<V, D>(p, 0), lanes[i]);
          p += V::CountKept(PieceBits<V, i>(words[r])) * kBytesOf<D>;
        });
      }
      const float* xm = x;
      float* sum = sums + r * stride;
      for (int m = 0; m < x_rows; ++m, xm += x_stride, sum += V::kLanes) {
        Reg total = V::Load(sum);
        Unroll<kPieces<V>>([&]<int i>() __attribute__((always_inline)) {
          if constexpr (kArranged<V, D>) {
            total = V::Fma(weights[i], V::Load(xm + i * V::kLanes), total);
          } else {
            total = V::FmaKept(weights[i], V::Load(xm + i * V::kLanes), total, lanes[i]);
          }
        });
        V::Store(sum, total);
      }
    }
    values.End(p);
    bitmap += kBitmapLanes * sizeof(uint64_t);
    x += kBitmapWord;
  }
  for (int m = 0; m < x_rows; ++m) {
    StoreSums<V, D>(sums + m * V::kLanes, stride, y + m * y_stride);
  }
}

// columns[bits]: which of eight are set, ascending, a byte each, lowest byte first.
struct ColumnTable {
  uint64_t columns[256];
};
static constexpr ColumnTable MakeColumnTable() {
  ColumnTable table = {};
  for (int bits = 0; bits < 256; ++bits) {
    int at = 0;
    for (int i = 0; i < 8; ++i) {
      if ((bits >> i & 1) != 0) table.columns[bits] |= static_cast<uint64_t>(i) << 8 * at++;
    }
  }
  return table;
}
static constexpr ColumnTable kColumnTable = MakeColumnTable();

// The columns of the set bits of a word, a byte each; writes up to seven bytes more. Returns how
// many there are.
static inline int ColumnsOf(uint64_t word, uint8_t* index) {
  int count = 0;
  for (int first = 0; first < kBitmapWord; first += 8, word >>= 8) {
    const uint64_t columns =
        kColumnTable.columns[word & 255] + 0x0101010101010101u * static_cast<uint64_t>(first);
    std::memcpy(index + count, &columns, sizeof columns);  // little-endian, as the formats are
    count += __builtin_popcount(static_cast<uint32_t>(word & 255));
  }
  return count;
}

// P rows of W at a time, each with its own columns: their sums hide each other's latency.
template <typename V, int U, int P>
static inline __attribute__((always_inline)) void BitmapBatchRows(const float* const (&values)[P],
                                                                  const uint8_t* const (&index)[P],
                                                                  const int (&count)[P],
                                                                  const float* x,
                                                                  typename V::Reg (&sum)[P][U]) {
  constexpr int64_t kWidth = U * V::kLanes;
  int common = count[0];
  for (int p = 1; p < P; ++p) common = count[p] < common ? count[p] : common;
  for (int p = 0; p < P; ++p) {
    for (int u = 0; u < U; ++u) sum[p][u] = V::Zero();
  }
  const auto add = [&](int p, int j) __attribute__((always_inline)) {
    const float* xk = x + index[p][j] * kWidth;
    asm("" : "+r"(xk));  // as in BatchSums
    const typename V::Reg w = V::Set1(values[p][j]);
    for (int u = 0; u < U; ++u) sum[p][u] = V::Fma(w, V::Load(xk + u * V::kLanes), sum[p][u]);
  };
  for (int j = 0; j < common; ++j) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) add(p, j);
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    for (int j = common; j < count[p]; ++j) add(p, j);
  }
}

template <typename V, int U>
static void BitmapBatch(const uint8_t* slice, DType dtype, ExpandFn expand, BitmapValues* values,
                        const float* x, float* y, bool first) {
  constexpr int kWidth = U * V::kLanes;
  constexpr int kFitting = LanesTogether<V>(U);
  constexpr int kTogether = kFitting > 4 ? 4 : kFitting;
  uint64_t words[kBitmapLanes];
  std::memcpy(words, slice, sizeof words);
  alignas(64) uint8_t index[kSliceValues + 8];
  int begin[kBitmapLanes + 1] = {0};
  for (int r = 0; r < kBitmapLanes; ++r)
    begin[r + 1] = begin[r] + ColumnsOf(words[r], index + begin[r]);
  const int wanted = begin[kBitmapLanes];
  const int present = wanted < values->left ? wanted : static_cast<int>(values->left);
  alignas(64) float wide[kSliceValues];
  expand(values->next, present, wide);
  for (int i = present; i < wanted; ++i) wide[i] = 0.0f;
  values->next += static_cast<size_t>(present) * SizeOf(dtype);
  values->left -= present;
  const auto put = [first]<int P>(typename V::Reg(&sum)[P], float* to)
                       __attribute__((always_inline)) {
                         for (int u = 0; u < P; ++u) {
                           if (!first) sum[u] = V::Add(V::Load(to + u * V::kLanes), sum[u]);
                           V::Store(to + u * V::kLanes, sum[u]);
                         }
                       };
  for (int r = 0; r < kBitmapLanes; r += kTogether) {
    if constexpr (kTogether > 1) {
      const float* w[kTogether];
      const uint8_t* columns[kTogether];
      int count[kTogether];
      for (int p = 0; p < kTogether; ++p) {
        w[p] = wide + begin[r + p];
        columns[p] = index + begin[r + p];
        count[p] = begin[r + p + 1] - begin[r + p];
      }
      typename V::Reg sum[kTogether][U];
      BitmapBatchRows<V, U, kTogether>(w, columns, count, x, sum);
      for (int p = 0; p < kTogether; ++p) put.template operator()<U>(sum[p], y + (r + p) * kWidth);
    } else {
      constexpr int kPart = U < V::kAccumulators ? U : V::kAccumulators;
      const auto part = [&]<int P>(int at) __attribute__((always_inline)) {
        typename V::Reg sum[1][P];
        BatchSums<V, 1, P, 1>(wide + begin[r], index + begin[r], begin[r + 1] - begin[r], x + at,
                              kWidth, sum);
        put.template operator()<P>(sum[0], y + r * kWidth + at);
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

// Dense rows: a word at a time where the processor expands 16-bit values, else value by value.
template <typename V>
static void BitmapExpand(const BitmapPanel& panel, uint16_t* out, int64_t stride) {
  SliceValues<V, DType::kBF16> values(panel.values);
  const uint8_t* bitmap = panel.bitmap;
  for (int64_t w = 0; w < panel.words; ++w) {
    uint64_t copy[kBitmapLanes];
    const uint64_t* words = WordsOf(bitmap, copy);
    const uint8_t* p = values.Begin(words);
    for (int r = 0; r < kBitmapLanes; ++r) {
      PrefetchRow<DType::kBF16>(p);
      uint16_t* to = out + r * stride + w * kBitmapWord;
      if constexpr (requires { V::StoreWord(p, words[r], to); }) {
        V::StoreWord(p, words[r], to);
        p += sizeof(uint16_t) * static_cast<size_t>(__builtin_popcountll(words[r]));
      } else {
        std::memset(to, 0, sizeof(uint16_t) * kBitmapWord);
        for (uint64_t bits = words[r]; bits != 0; bits &= bits - 1, p += sizeof(uint16_t)) {
          std::memcpy(to + __builtin_ctzll(bits), p, sizeof(uint16_t));
        }
      }
    }
    values.End(p);
    bitmap += kBitmapLanes * sizeof(uint64_t);
  }
}

template <typename V>
static constexpr BitmapKernels MakeBitmapKernels(const TileKernels& tiles, int max_decode_rows) {
  return BitmapKernels{tiles,
                       max_decode_rows,
                       {BitmapDecode<V, DType::kF32>, BitmapDecode<V, DType::kBF16>,
                        BitmapDecode<V, DType::kF16>, BitmapDecode<V, DType::kI8>},
                       {BitmapDecodeFew<V, DType::kF32>, BitmapDecodeFew<V, DType::kBF16>,
                        BitmapDecodeFew<V, DType::kF16>, BitmapDecodeFew<V, DType::kI8>},
                       {BitmapBatch<V, V::kBatchVectors[0]>, BitmapBatch<V, V::kBatchVectors[1]>,
                        BitmapBatch<V, V::kBatchVectors[2]>, BitmapBatch<V, V::kBatchVectors[3]>,
                        BitmapBatch<V, V::kBatchVectors[4]>},
                       BitmapExpand<V>,
                       {}};
}

}  // namespace sparsekern
