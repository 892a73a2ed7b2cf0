// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of pruned KV caches without a GPU: a warp's lanes run one by one, with votes,
// exchanges, mma.m16n8k16 and movmatrix as the PTX ISA defines them, against the CPU's operators.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "csr_case.h"
#include "ops/bitmap_attention/cuda_plan.h"
#include "ops/bitmap_kv_append/cuda_select.h"
#include "sparsekern/bitmap_attention.h"
#include "sparsekern/bitmap_kv_append.h"

namespace sparsekern::cuda {
namespace {

using testing::RandomFloats;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kLanes = 32;

template <DType D>
using ElementOf = std::conditional_t<D == DType::kF32, uint32_t, uint16_t>;

template <DType D>
ElementOf<D> BitsOf(float x) {
  if constexpr (D == DType::kF32) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
  } else {
    return D == DType::kBF16 ? BF16FromF32(x) : F16FromF32(x);
  }
}

template <DType D>
float FloatOf(uint32_t bits) {
  if constexpr (D == DType::kF32) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  } else {
    const auto half = static_cast<uint16_t>(bits);
    return D == DType::kBF16 ? F32FromBF16(half) : F32FromF16(half);
  }
}

template <DType D>
std::vector<ElementOf<D>> Random(int64_t n, uint32_t seed) {
  std::vector<ElementOf<D>> out;
  for (const float x : RandomFloats(n, seed)) out.push_back(BitsOf<D>(x));
  return out;
}

// --- Appending ---

// What the warp of AppendKernel writes of one row.
template <DType D>
void SelectRow(const ElementOf<D>* row, int head_dim, int keep, ElementOf<D>* values,
               uint8_t* mask) {
  const auto reach = [&](int j, uint32_t number) {
    uint32_t word = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int channel = j * 32 + lane;
      if (channel < head_dim && KvMagnitude(row[channel]) >= number) word |= uint32_t{1} << lane;
    }
    return word;
  };
  const auto vote = [](const auto& f) {
    uint32_t word = 0;
    for (int lane = 0; lane < kLanes; ++lane) word |= (f(lane) ? uint32_t{1} : 0u) << lane;
    return word;
  };
  const auto emit = [&](int j, uint32_t word, int before) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((word >> lane & 1) != 0) {
        values[before + KvCount(word & KvLanesBelow(lane))] = row[j * 32 + lane];
      }
    }
    for (int i = 0; i < 4 && j * 4 + i < head_dim / 8; ++i) {
      mask[j * 4 + i] = static_cast<uint8_t>(word >> (8 * i));
    }
  };
  KvSelect(uint32_t{1} << (8 * sizeof(ElementOf<D>) - 2), (head_dim + 31) / 32, keep, reach, vote,
           emit);
}

// Rows that are random, with many ties, and with special numbers.
template <DType D>
std::vector<ElementOf<D>> Rows(int head_dim) {
  std::mt19937 random(static_cast<uint32_t>(head_dim));
  std::vector<ElementOf<D>> out = Random<D>(int64_t{20} * head_dim, 1);
  for (int i = 0; i < 20 * head_dim; ++i) {
    out.push_back(BitsOf<D>(static_cast<float>(random() % 5) - 2.0f));
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float special[] = {0.0f, -0.0f, kInfinity, -kInfinity, nan, -nan, 1.0f, 1e-40f, 3e-8f};
  for (int i = 0; i < 20 * head_dim; ++i) out.push_back(BitsOf<D>(special[random() % 9]));
  for (int i = 0; i < 4 * head_dim; ++i) {
    out.push_back(static_cast<ElementOf<D>>(random()));  // NaN of every payload
  }
  for (int i = 0; i < head_dim; ++i) out.push_back(0);
  return out;
}

template <DType D>
void CheckAppend() {
  for (const int head_dim : {8, 24, 64, 80, 96, 128, 136, 256}) {
    const std::vector<ElementOf<D>> rows = Rows<D>(head_dim);
    const auto tokens = static_cast<int64_t>(rows.size()) / head_dim;
    for (const int keep : {1, head_dim / 3, head_dim / 2, head_dim - 1, head_dim}) {
      BitmapKvPages p;
      p.layout = BitmapKvLayout{D, head_dim, keep, std::max(1, keep / 2)};
      p.page_count = p.table_pages = (tokens + 63) / 64;
      p.kv_heads = p.batch = 1;
      std::vector<int32_t> table;
      for (int64_t i = 0; i < p.page_count; ++i) table.push_back(static_cast<int32_t>(i));
      const int64_t length = 0;
      p.table = table.data();
      p.lengths = &length;
      std::vector<uint8_t> want(static_cast<size_t>(p.page_count * p.layout.page_bytes()), 0x5a);
      std::vector<uint8_t> got = want;
      p.pages = want.data();
      BitmapKvAppendArgs a;
      a.k = a.v = rows.data();
      a.k_strides[2] = a.v_strides[2] = head_dim;
      a.tokens = tokens;
      ASSERT_TRUE(sparsekern::BitmapKvAppend(p, a, Serial()).ok());
      p.pages = got.data();
      const KvPages view = KvPagesOf(p);
      for (int64_t t = 0; t < tokens; ++t) {
        uint8_t* page = got.data() + KvPageOf(view, 0, t, 0);
        const int64_t at = t % 64;
        SelectRow<D>(&rows[static_cast<size_t>(t * head_dim)], head_dim, view.k_keep,
                     reinterpret_cast<ElementOf<D>*>(page) + at * view.k_keep,
                     page + view.k_masks + at * (head_dim / 8));
        SelectRow<D>(&rows[static_cast<size_t>(t * head_dim)], head_dim, view.v_keep,
                     reinterpret_cast<ElementOf<D>*>(page + view.v_values) + at * view.v_keep,
                     page + view.v_masks + at * (head_dim / 8));
      }
      ASSERT_EQ(got, want) << Name(D) << ", " << keep << " of " << head_dim;
    }
  }
}

TEST(CudaBitmapKvAppend, LanesWriteTheCpusPages) {
  CheckAppend<DType::kF32>();
  CheckAppend<DType::kBF16>();
  CheckAppend<DType::kF16>();
}

// --- What the device's memory may say ---

TEST(CudaBitmapKvPages, NothingOutsideIsNamed) {
  std::vector<int32_t> table = {3, -1, 4, 0};
  std::vector<int64_t> lengths = {-1, 129};
  BitmapKvPages p;
  p.layout = BitmapKvLayout{DType::kBF16, 64, 32, 20};
  p.page_count = 4;
  p.kv_heads = 3;
  p.table = table.data();
  p.lengths = lengths.data();
  p.batch = 2;
  p.table_pages = 2;
  const KvPages view = KvPagesOf(p);
  EXPECT_EQ(KvPageOf(view, 0, 63, 2), (3 * 3 + 2) * p.layout.page_bytes());
  EXPECT_EQ(KvPageOf(view, 0, 64, 0), -1);
  EXPECT_EQ(KvPageOf(view, 1, 0, 0), -1);
  EXPECT_EQ(KvPageOf(view, 1, 127, 1), p.layout.page_bytes());
  EXPECT_TRUE(KvFits(view, 128, 0));
  EXPECT_TRUE(KvFits(view, 0, 128));
  EXPECT_FALSE(KvFits(view, 1, 128));
  EXPECT_FALSE(KvFits(view, 129, 0));
  EXPECT_FALSE(KvFits(view, -1, 0));
  EXPECT_FALSE(KvFits(view, std::numeric_limits<int64_t>::max(), 1));
  EXPECT_FALSE(KvFits(view, 1, std::numeric_limits<int64_t>::max()));
  const int64_t window[] = {0, 0};
  EXPECT_FALSE(KvSequenceOf(view, 0, window, 8, nullptr).fits);
  EXPECT_FALSE(KvSequenceOf(view, 1, window, 8, nullptr).fits);
  lengths = {100, 100};
  for (const int64_t bad : {int64_t{-1}, int64_t{9}, std::numeric_limits<int64_t>::min()}) {
    EXPECT_FALSE(KvSequenceOf(view, 0, &bad, 8, nullptr).fits);
  }
  const int64_t slots = 8;
  for (const int64_t start :
       {std::numeric_limits<int64_t>::min(), int64_t{0}, std::numeric_limits<int64_t>::max()}) {
    const KvSequence s = KvSequenceOf(view, 0, &slots, 8, &start);
    EXPECT_TRUE(s.fits);
    EXPECT_EQ(s.start, start > 0 ? 108 : 0);
  }
}

TEST(CudaBitmapKvPages, PartsTakeEveryTokenAttendedToOnce) {
  for (const int length : {0, 1, 15, 16, 17, 64, 200}) {
    for (const int window : {0, 1, 16, 33}) {
      for (const int start : {0, 1, 16, 40, 199, 200, 201, 216, 300}) {
        for (const int64_t parts : {1, 3, 7, 40}) {
          const KvSequence s{length, window, std::min(start, length + window), true};
          std::vector<int> tokens;
          for (int64_t part = 0; part < parts; ++part) {
            const KvSpan span = KvPartTiles(s, part, parts);
            for (int tile = span.begin; tile < span.end; ++tile) {
              const KvRows rows = KvRowsOf(s, tile);
              for (int row = 0; row < kKvTile; ++row) {
                if (rows.Have(row)) tokens.push_back(KvTileFirst(s, tile) + row);
              }
            }
          }
          std::vector<int> want;
          for (int t = s.start; t < length + window; ++t) want.push_back(t);
          ASSERT_EQ(tokens, want) << length << " " << window << " " << start << " " << parts;
        }
      }
    }
  }
}

TEST(CudaBitmapKvPages, CopiesFillRowsThatSpreadOverBanks) {
  for (int row = 2; row <= 1024; row += 2) {
    const uint32_t reciprocal = KvReciprocal(row);
    std::vector<bool> taken(static_cast<size_t>(KvTileBytes(row)), false);
    for (int i = 0; i < row; ++i) {
      const int to = KvCopyTo(i, reciprocal);
      ASSERT_EQ(to % 16, 0);
      for (int byte = 0; byte < 16; ++byte) {
        const int from = 16 * i + byte;
        ASSERT_EQ(to + byte, from / row * KvRowStride(row) + from % row) << row;
        ASSERT_FALSE(taken[static_cast<size_t>(to + byte)]);
        taken[static_cast<size_t>(to + byte)] = true;
      }
    }
    // Eight rows never begin in fewer than eight banks, or lie as in the page.
    if (!KvPadded(row)) continue;
    std::set<int> banks;
    for (int r = 0; r < 8; ++r) banks.insert(r * KvRowStride(row) / 4 % 32);
    ASSERT_EQ(banks.size(), 8u) << row;
  }
}

TEST(CudaBitmapKvPlan, PartsFillTheDeviceAndFitItsMemory) {
  BitmapKvPages p;
  p.batch = 32;
  p.kv_heads = 8;
  p.table_pages = 64;
  p.layout = BitmapKvLayout{DType::kBF16, 128, 64, 64};
  constexpr int kShared = 227 * 1024;
  KvPlan plan = PlanKvAttention(KvPagesOf(p), 32, 32, 132, kShared);
  EXPECT_EQ(plan.parts, 6);
  EXPECT_EQ(plan.chunks, 1);
  EXPECT_EQ(plan.units, 32 * 8 * 6);
  EXPECT_EQ(plan.warps, 2);
  EXPECT_EQ(plan.shared_bytes, 2 * (2 * 2 * 16 * 144 + 256));
  p.batch = 1;
  plan = PlanKvAttention(KvPagesOf(p), 8 * 17, 32, 132, kShared);
  EXPECT_EQ(plan.chunks, 3);  // of 17 query heads
  EXPECT_EQ(plan.parts, 65);  // a page, or the window
  p.table_pages = 100000;
  p.kv_heads = 1;
  EXPECT_EQ(PlanKvAttention(KvPagesOf(p), 1, 32, 132, kShared).parts, kKvMaxParts);
  p.table_pages = 0;
  EXPECT_EQ(PlanKvAttention(KvPagesOf(p), 1, 0, 132, kShared).parts, 1);
  p.batch = 0;
  EXPECT_EQ(PlanKvAttention(KvPagesOf(p), 1, 0, 132, kShared).units, 0);
  // The largest pages in the least memory that a device of compute capability 8 has.
  p.layout = BitmapKvLayout{DType::kF32, 256, 256, 256};
  for (const int shared : {99 * 1024, 163 * 1024, kShared}) {
    plan = PlanKvAttention(KvPagesOf(p), 1, 32, 132, shared);
    EXPECT_LE(plan.shared_bytes, shared);
    EXPECT_GE(plan.warps, 1);
  }
}

// --- Attention ---

// A number of each lane.
template <typename T>
struct OfLanes : std::array<T, kLanes> {
  OfLanes operator+(const OfLanes& other) const {
    OfLanes sum;
    for (size_t i = 0; i < kLanes; ++i) sum[i] = (*this)[i] + other[i];
    return sum;
  }
};

// As the kernel's SumBefore: rows of lanes that are Stride apart.
template <int Lanes, int Stride>
OfLanes<uint32_t> SumBefore(const OfLanes<uint32_t>& counts) {
  return KvSumBefore<Lanes>(counts, [](const OfLanes<uint32_t>& x, int n) {
    OfLanes<uint32_t> up;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int place = Stride == 1 ? lane % 4 : lane / 4;
      const int from = lane - n * Stride;
      up[static_cast<size_t>(lane)] = place >= n ? x[static_cast<size_t>(from)] : 0;
    }
    return up;
  });
}

using Registers = std::array<uint32_t, 4>;

// d += a b with the fragments of mma.m16n8k16.
template <DType D>
void Mma(std::array<std::array<float, 4>, kLanes>* d, const std::array<Registers, kLanes>& a,
         const std::array<std::array<uint32_t, 2>, kLanes>& b) {
  float left[16][16], right[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) {
        left[lane / 4 + r % 2 * 8][lane % 4 * 2 + half + r / 2 * 8] = FloatOf<D>(
            a[static_cast<size_t>(lane)][static_cast<size_t>(r)] >> (16 * half) & 0xffff);
      }
      for (int r = 0; r < 2; ++r) {
        right[lane % 4 * 2 + half + r * 8][lane / 4] = FloatOf<D>(
            b[static_cast<size_t>(lane)][static_cast<size_t>(r)] >> (16 * half) & 0xffff);
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) {
        sum += left[lane / 4 + i / 2 * 8][k] * right[k][lane % 4 * 2 + i % 2];
      }
      (*d)[static_cast<size_t>(lane)][static_cast<size_t>(i)] += sum;
    }
  }
}

// movmatrix.trans: each lane has two neighbours of row lane / 4.
OfLanes<uint32_t> Transposed(const OfLanes<uint32_t>& matrix) {
  uint32_t rows[8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int half = 0; half < 2; ++half) {
      rows[lane / 4][lane % 4 * 2 + half] =
          matrix[static_cast<size_t>(lane)] >> (16 * half) & 0xffff;
    }
  }
  OfLanes<uint32_t> out;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int at = lane % 4 * 2;
    out[static_cast<size_t>(lane)] = rows[at][lane / 4] | rows[at + 1][lane / 4] << 16;
  }
  return out;
}

// A warp of PartsKernel.
template <DType D, int DP>
struct Warp {
  using Element = ElementOf<D>;
  static constexpr size_t kSteps = DP / 16;
  static constexpr float kScale = D == DType::kF16 ? kKvHalfWeightScale : 1.0f;

  const KvPages& p;
  const BitmapAttentionArgs& a;
  const Element* q;
  int heads;
  std::vector<uint8_t> memory;
  bool finite = true;
  std::array<std::array<std::array<uint32_t, 2>, kLanes>, kSteps> q_operand{};
  std::array<std::array<std::array<float, 4>, kLanes>, kSteps> acc{};
  std::array<std::array<KvWeights, 2>, kLanes> weights{};

  Warp(const KvPages& pages, const BitmapAttentionArgs& args, const Element* first, int count)
      : p(pages), a(args), q(first), heads(count) {
    memory.assign(static_cast<size_t>(KvWarpBytes(p)), 0xff);  // NaN where nothing is copied
    for (auto& of_lane : weights) of_lane = {KvWeights{kKvLowest, 0.0f}, {kKvLowest, 0.0f}};
    for (int lane = 0; lane < kLanes && D != DType::kF32; ++lane) {
      for (size_t i = 0; i < kSteps; ++i) {
        for (int j = 0; j < 4; ++j) {
          const int channel = KvKChannel<DP>(lane) + 4 * static_cast<int>(i) + j;
          if (lane / 4 >= heads || channel >= p.head_dim) continue;
          const uint32_t bits = q[lane / 4 * p.head_dim + channel];
          finite = finite && std::isfinite(FloatOf<D>(bits));
          q_operand[i][static_cast<size_t>(lane)][static_cast<size_t>(j / 2)] |= bits
                                                                                 << (16 * (j % 2));
        }
      }
    }
  }

  void Tile(const KvSequence& s, int64_t b, int64_t h, int tile) {
    const KvRows rows = KvRowsOf(s, tile);
    const bool dense = tile >= KvPageTiles(s);
    const int k_bytes = (dense ? p.head_dim : p.k_keep) * p.element;
    const int v_bytes = (dense ? p.head_dim : p.v_keep) * p.element;
    uint8_t* stage = memory.data() + (dense ? 0 : tile % 2 * KvStageBytes(p));
    const int first = tile % kKvTilesOfPage * kKvTile;
    const uint8_t* page = dense ? nullptr : p.pages + KvPageOf(p, b, int64_t{tile} * kKvTile, h);
    if (dense) {
      for (int row = 0; row < kKvTile; ++row) {
        if (!rows.Have(row)) continue;
        const int64_t slot = (KvTileFirst(s, tile) + row) % a.window_slots;
        const int64_t at = ((b * p.kv_heads + h) * a.window_slots + slot) * k_bytes;
        std::memcpy(stage + row * KvRowStride(k_bytes),
                    static_cast<const uint8_t*>(a.window_k) + at, static_cast<size_t>(k_bytes));
        std::memcpy(stage + KvTileBytes(k_bytes) + row * KvRowStride(k_bytes),
                    static_cast<const uint8_t*>(a.window_v) + at, static_cast<size_t>(k_bytes));
      }
    } else {
      for (int i = 0; i < k_bytes; ++i) {
        std::memcpy(stage + KvCopyTo(i, KvReciprocal(k_bytes)), page + first * k_bytes + 16 * i,
                    16);
      }
      for (int i = 0; i < v_bytes; ++i) {
        std::memcpy(stage + KvTileBytes(k_bytes) + KvCopyTo(i, KvReciprocal(v_bytes)),
                    page + p.v_values + first * v_bytes + 16 * i, 16);
      }
    }
    KvKBits<DP> k_bits[kLanes][2] = {};
    KvVBits v_bits[kLanes][4] = {};
    OfLanes<uint32_t> k_counts{}, v_counts{};
    const int mask = p.head_dim / 8;
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 2; ++i) {
        const int row = KvKRow(lane, i), channel = KvKChannel<DP>(lane);
        if (rows.Have(row)) {
          k_bits[lane][i] = dense
                                ? KvAllBits<DP / 4, KvKBits<DP>>(p.head_dim, channel)
                                : KvMaskBits<DP / 4, KvKBits<DP>>(
                                      page + p.k_masks + (first + row) * mask, p.head_dim, channel);
        }
        k_counts[static_cast<size_t>(lane)] |= static_cast<uint32_t>(KvCount(k_bits[lane][i]))
                                               << (16 * i);
      }
      for (int i = 0; i < 4; ++i) {
        const int row = KvVRow(lane, i), channel = KvVChannel<DP>(lane);
        if (rows.Have(row)) {
          v_bits[lane][i] = dense
                                ? KvAllBits<DP / 8, KvVBits>(p.head_dim, channel)
                                : KvMaskBits<DP / 8, KvVBits>(
                                      page + p.v_masks + (first + row) * mask, p.head_dim, channel);
        }
        v_counts[static_cast<size_t>(lane)] |= static_cast<uint32_t>(KvCount(v_bits[lane][i]))
                                               << (8 * i);
      }
    }
    const OfLanes<uint32_t> k_before = SumBefore<4, 1>(k_counts);
    const OfLanes<uint32_t> v_before = SumBefore<8, 4>(v_counts);
    const Element* k[kLanes][2];
    const Element* v[kLanes][4];
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto at = static_cast<size_t>(lane);
      for (int i = 0; i < 2; ++i) {
        k[lane][i] =
            reinterpret_cast<const Element*>(stage + KvKRow(lane, i) * KvRowStride(k_bytes)) +
            (k_before[at] >> (16 * i) & 0xffff);
      }
      for (int i = 0; i < 4; ++i) {
        v[lane][i] = reinterpret_cast<const Element*>(stage + KvTileBytes(k_bytes) +
                                                      KvVRow(lane, i) * KvRowStride(v_bytes)) +
                     (v_before[at] >> (8 * i) & 0xff);
      }
    }

    std::array<std::array<float, 4>, kLanes> scores{};
    if constexpr (D != DType::kF32) {
      for (size_t i = 0; i < kSteps && finite; ++i) {
        std::array<Registers, kLanes> operand;
        for (int lane = 0; lane < kLanes; ++lane) {
          uint32_t r[4];
          KvKFragment(k[lane], k_bits[lane], static_cast<int>(i), r);
          std::copy(r, r + 4, operand[static_cast<size_t>(lane)].begin());
        }
        Mma<D>(&scores, operand, q_operand[i]);
      }
    }
    if (D == DType::kF32 || !finite) Products(k, k_bits, &scores);
    std::array<std::array<float, 2>, kLanes> move;
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int j = 0; j < 2; ++j) {
        float top = kKvLowest;
        float of_lane[2] = {};
        for (int other = lane % 4; other < kLanes; other += 4) {
          for (int i = 0; i < 2; ++i) {
            const float x =
                rows.Have(KvKRow(other, i))
                    ? KvScore(scores[static_cast<size_t>(other)][static_cast<size_t>(2 * i + j)],
                              a.scale, a.softcap)
                    : -kInfinity;
            top = std::fmax(top, x);
            if (other == lane) of_lane[i] = x;
          }
        }
        const auto at = static_cast<size_t>(lane), head = static_cast<size_t>(j);
        move[at][head] = KvRaise(&weights[at][head], top, of_lane);
        lane_weights[at][head] = of_lane[0];
        lane_weights[at][head + 2] = of_lane[1];
      }
    }
    for (auto& step : acc) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        for (size_t j = 0; j < 4; ++j) step[lane][j] *= move[lane][j % 2];
      }
    }
    if constexpr (D == DType::kF32) {
      AddValues(v, v_bits);
    } else {
      std::array<std::array<uint32_t, 2>, kLanes> high, low;
      for (size_t i = 0; i < 2; ++i) {
        OfLanes<uint32_t> h_pair, l_pair;
        for (size_t lane = 0; lane < kLanes; ++lane) {
          uint32_t h_bits = 0, l_bits = 0;
          for (size_t j = 0; j < 2; ++j) {
            const float x = lane_weights[lane][2 * i + j] * kScale;
            const uint32_t part = BitsOf<D>(x);
            h_bits |= part << (16 * j);
            l_bits |= static_cast<uint32_t>(BitsOf<D>(x - FloatOf<D>(part))) << (16 * j);
          }
          h_pair[lane] = h_bits;
          l_pair[lane] = l_bits;
        }
        h_pair = Transposed(h_pair);
        l_pair = Transposed(l_pair);
        for (size_t lane = 0; lane < kLanes; ++lane) {
          high[lane][i] = h_pair[lane];
          low[lane][i] = l_pair[lane];
        }
      }
      for (size_t i = 0; i < kSteps; ++i) {
        std::array<Registers, kLanes> operand;
        for (int lane = 0; lane < kLanes; ++lane) {
          uint32_t r[4];
          KvVFragment(v[lane], v_bits[lane], static_cast<int>(i), r);
          std::copy(r, r + 4, operand[static_cast<size_t>(lane)].begin());
        }
        Mma<D>(&acc[i], operand, high);
        Mma<D>(&acc[i], operand, low);
      }
    }
  }

  void Products(const Element* (&begin)[kLanes][2], const KvKBits<DP> (&bits)[kLanes][2],
                std::array<std::array<float, 4>, kLanes>* scores) const {
    for (int h = 0; h < heads; ++h) {
      float dot[kLanes][2] = {};
      for (int lane = 0; lane < kLanes; ++lane) {
        const Element* k[2] = {begin[lane][0], begin[lane][1]};
        for (int c = 0; c < DP / 4; ++c) {
          for (int i = 0; i < 2; ++i) {
            const bool kept = (bits[lane][i] >> c & 1) != 0;
            const float x = FloatOf<D>(KvTake(k[i], kept ? 1u : 0u));
            if (kept) dot[lane][i] += x * FloatOf<D>(q[h * p.head_dim + KvKChannel<DP>(lane) + c]);
          }
        }
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        if (h / 2 != lane % 4) continue;
        const int g = lane / 4 * 4;
        for (int i = 0; i < 2; ++i) {
          (*scores)[static_cast<size_t>(lane)][static_cast<size_t>(2 * i + h % 2)] =
              dot[g][i] + dot[g + 1][i] + dot[g + 2][i] + dot[g + 3][i];
        }
      }
    }
  }

  void AddValues(const Element* (&v)[kLanes][4], const KvVBits (&bits)[kLanes][4]) {
    for (int c = 0; c < DP / 8; ++c) {
      float x[kLanes][4];
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int r = 0; r < 4; ++r) {
          x[lane][r] = FloatOf<D>(KvTake(v[lane][r], KvBit(bits[lane][r], c)));
        }
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int r = 0; r < 4; ++r) {
          for (int from = 0; from < 4; ++from) {
            const int row = KvVRow(from, r);
            for (int j = 0; j < 2; ++j) {
              const auto of_row = static_cast<size_t>(row % 8 * 4 + lane % 4);
              acc[static_cast<size_t>(c / 2)][static_cast<size_t>(lane)]
                 [static_cast<size_t>(c % 2 * 2 + j)] +=
                  x[lane / 4 * 4 + from][r] *
                  lane_weights[of_row][static_cast<size_t>(row / 8 * 2 + j)];
            }
          }
        }
      }
    }
  }

  // Of head h of the chunk: the sums over V, and the weights.
  KvWeights Result(int h, float* sums) const {
    KvWeights w{0.0f, 0.0f};
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int j = 0; j < 2; ++j) {
        if (KvHead(lane, j) != h) continue;
        const auto at = static_cast<size_t>(lane), head = static_cast<size_t>(j);
        w = KvWeights{weights[at][head].m, w.sum + weights[at][head].sum};
        for (size_t i = 0; i < kSteps; ++i) {
          for (size_t c = 0; c < 2; ++c) {
            const int channel = KvVChannel<DP>(lane) + static_cast<int>(2 * i + c);
            if (channel < p.head_dim) sums[channel] = acc[i][at][2 * c + head] / kScale;
          }
        }
      }
    }
    return w;
  }

  std::array<std::array<float, 4>, kLanes> lane_weights{};
};

// Both kernels.
template <DType D, int DP>
void Attention(const KvPages& p, const BitmapAttentionArgs& a, const KvPlan& plan,
               std::vector<float>* out, float* lse) {
  const int64_t group = a.heads / p.kv_heads;
  for (int64_t b = 0; b < p.batch; ++b) {
    const KvSequence s = KvSequenceOf(p, b, a.window_lengths, a.window_slots, a.starts);
    ASSERT_TRUE(s.fits);
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        const int64_t first = b * a.heads + h * group + chunk * kKvHeads;
        const int heads = static_cast<int>(std::min<int64_t>(kKvHeads, group - chunk * kKvHeads));
        std::vector<std::vector<KvWeights>> weights(static_cast<size_t>(heads));
        std::vector<std::vector<std::vector<float>>> sums(static_cast<size_t>(heads));
        for (int64_t part = 0; part < plan.parts; ++part) {
          Warp<D, DP> warp(p, a, static_cast<const ElementOf<D>*>(a.q) + first * p.head_dim, heads);
          const KvSpan span = KvPartTiles(s, part, plan.parts);
          for (int tile = span.begin; tile < span.end; ++tile) warp.Tile(s, b, h, tile);
          for (int i = 0; i < heads; ++i) {
            std::vector<float> row(static_cast<size_t>(p.head_dim));
            weights[static_cast<size_t>(i)].push_back(warp.Result(i, row.data()));
            sums[static_cast<size_t>(i)].push_back(row);
          }
        }
        for (int i = 0; i < heads; ++i) {
          const auto& of_head = weights[static_cast<size_t>(i)];
          float most = kKvLowest, total = 0.0f;
          for (const KvWeights& w : of_head) most = w.m > most ? w.m : most;
          std::vector<float> row(static_cast<size_t>(p.head_dim), 0.0f);
          for (size_t part = 0; part < of_head.size(); ++part) {
            if (of_head[part].sum == 0.0f) continue;
            const float factor = KvPartFactor(of_head[part], most);
            total += of_head[part].sum * factor;
            for (size_t c = 0; c < row.size(); ++c) {
              row[c] += sums[static_cast<size_t>(i)][part][c] * factor;
            }
          }
          const KvResult result = KvFinish(most, total, s.start < s.length + s.window);
          lse[first + i] = result.lse;
          for (size_t c = 0; c < row.size(); ++c) {
            (*out)[static_cast<size_t>((first + i) * p.head_dim) + c] = row[c] * result.factor;
          }
        }
      }
    }
  }
}

struct Case {
  int head_dim, k_keep, v_keep, kv_heads, group;
  float softcap;
  bool infinite_q;
};

template <DType D, int DP>
void CheckAttention(const Case& c) {
  SCOPED_TRACE(std::string(Name(D)) + " head_dim " + std::to_string(c.head_dim) + " keep " +
               std::to_string(c.k_keep) + " " + std::to_string(c.v_keep) + " heads " +
               std::to_string(c.kv_heads) + " x " + std::to_string(c.group));
  constexpr int64_t kBatch = 4, kTablePages = 3, kSlots = 20;
  BitmapKvPages p;
  p.layout = BitmapKvLayout{D, c.head_dim, c.k_keep, c.v_keep};
  p.batch = kBatch;
  p.kv_heads = c.kv_heads;
  p.table_pages = kTablePages;
  p.page_count = kBatch * kTablePages;
  std::vector<int32_t> table;
  for (int32_t i = 0; i < p.page_count; ++i)
    table.push_back(static_cast<int32_t>(p.page_count) - 1 - i);
  std::vector<int64_t> lengths(kBatch, 0);
  const std::vector<int64_t> windows = {17, 0, 20, 1}, starts = {5, 0, 140, 3};
  // Bits that are NaN wherever nothing is written.
  std::vector<uint8_t> pages(static_cast<size_t>(p.page_count * p.kv_heads * p.layout.page_bytes()),
                             0xff);
  p.pages = pages.data();
  p.table = table.data();
  p.lengths = lengths.data();
  const int64_t rows = kBatch * c.kv_heads;
  auto k = Random<D>(rows * 130 * c.head_dim, 1);
  const auto v = Random<D>(rows * 130 * c.head_dim, 2);
  // Where q is infinite K is negative: a kept channel makes a score -inf, a pruned one nothing.
  constexpr auto kSign =
      static_cast<ElementOf<D>>(ElementOf<D>{1} << (8 * sizeof(ElementOf<D>) - 1));
  for (size_t i = 3; c.infinite_q && i < k.size(); i += static_cast<size_t>(c.head_dim)) {
    k[i] |= kSign;
  }
  BitmapKvAppendArgs append;
  append.k = k.data();
  append.v = v.data();
  append.tokens = 130;
  append.k_strides[0] = append.v_strides[0] = c.kv_heads * 130 * c.head_dim;
  append.k_strides[1] = append.v_strides[1] = 130 * c.head_dim;
  append.k_strides[2] = append.v_strides[2] = c.head_dim;
  ASSERT_TRUE(sparsekern::BitmapKvAppend(p, append, Serial()).ok());
  lengths = {130, 0, 130, 77};

  BitmapAttentionArgs a;
  a.dtype = D;
  a.heads = c.kv_heads * c.group;
  auto q = Random<D>(kBatch * a.heads * c.head_dim, 3);
  if (c.infinite_q) q[3] = BitsOf<D>(kInfinity);
  auto wk = Random<D>(rows * kSlots * c.head_dim, 4);
  const auto wv = Random<D>(rows * kSlots * c.head_dim, 5);
  for (size_t i = 3; c.infinite_q && i < wk.size(); i += static_cast<size_t>(c.head_dim)) {
    wk[i] |= kSign;
  }
  a.q = q.data();
  a.window_k = wk.data();
  a.window_v = wv.data();
  a.window_slots = kSlots;
  a.window_lengths = windows.data();
  a.starts = starts.data();
  a.scale = 0.7f;
  a.softcap = c.softcap;
  std::vector<ElementOf<D>> want(q.size());
  std::vector<float> want_lse(static_cast<size_t>(kBatch * a.heads));
  a.out = want.data();
  a.lse = want_lse.data();
  const Status status = sparsekern::BitmapAttention(p, a, Serial());
  ASSERT_TRUE(status.ok()) << status.message();

  for (size_t i = 0; c.infinite_q && i < want.size() / kBatch; ++i) {
    ASSERT_TRUE(std::isfinite(FloatOf<D>(want[i])));
  }
  const KvPages view = KvPagesOf(p);
  for (const int multiprocessors : {1, 40}) {
    const KvPlan plan = PlanKvAttention(view, a.heads, kSlots, multiprocessors, 100 * 1024);
    std::vector<float> got(q.size()), lse(want_lse.size());
    Attention<D, DP>(view, a, plan, &got, lse.data());
    const float eps = D == DType::kF32 ? 0.0f : D == DType::kBF16 ? 4e-3f : 5e-4f;
    const auto close = [](float x, float y, float tolerance) {
      return std::isnan(x) ? std::isnan(y) : x == y || std::fabs(x - y) <= tolerance;
    };
    for (size_t i = 0; i < got.size(); ++i) {
      const float expected = FloatOf<D>(want[i]);
      ASSERT_TRUE(close(expected, got[i], 3e-5f + eps * std::fabs(expected)))
          << expected << " " << got[i] << " at " << i << ", " << plan.parts << " parts";
    }
    for (size_t i = 0; i < lse.size(); ++i) {
      ASSERT_TRUE(close(want_lse[i], lse[i], 3e-5f)) << want_lse[i] << " " << lse[i] << " at " << i;
    }
  }
}

TEST(CudaBitmapAttention, WarpsAttendAsTheCpuDoes) {
  constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16, kF16 = DType::kF16;
  CheckAttention<kBF16, 64>({64, 32, 20, 2, 4, 0.0f, false});
  CheckAttention<kBF16, 64>({8, 4, 1, 1, 1, 0.0f, false});
  CheckAttention<kF16, 64>({40, 20, 40, 2, 3, 2.0f, false});
  CheckAttention<kBF16, 128>({128, 64, 38, 2, 4, 0.0f, false});
  CheckAttention<kF16, 128>({128, 128, 127, 1, 17, 0.0f, false});
  CheckAttention<kBF16, 128>({72, 36, 24, 1, 8, 0.0f, false});
  CheckAttention<kF16, 128>({96, 48, 64, 1, 2, 5.0f, false});
  CheckAttention<kBF16, 256>({256, 128, 96, 1, 5, 0.0f, false});
  CheckAttention<kF16, 256>({200, 256 - 80, 1, 1, 9, 0.0f, false});
  CheckAttention<kF32, 128>({64, 32, 21, 2, 4, 0.0f, false});
  CheckAttention<kF32, 128>({120, 60, 40, 1, 9, 3.0f, false});
  CheckAttention<kF32, 256>({256, 128, 256, 1, 2, 0.0f, false});
  // What was pruned does not meet an infinity in q.
  CheckAttention<kBF16, 64>({64, 20, 20, 1, 3, 0.0f, true});
  CheckAttention<kF16, 256>({136, 50, 50, 1, 2, 0.0f, true});
  CheckAttention<kF32, 128>({128, 40, 50, 1, 2, 0.0f, true});
}

// A mask that keeps more than it must reads no further than a warp's memory.
// Many tokens far below the largest score count together as much as they should.
TEST(CudaBitmapAttention, SmallWeightsOfFloat16Survive) {
  for (float gap = 0.0f; gap < 18.0f; gap += 0.5f) {
    const float weight = std::exp(-gap), scaled = weight * kKvHalfWeightScale;
    const uint32_t high = BitsOf<DType::kF16>(scaled);
    const float rest = scaled - FloatOf<DType::kF16>(high);
    const float low = FloatOf<DType::kF16>(BitsOf<DType::kF16>(rest));
    const float kept = (FloatOf<DType::kF16>(high) + low) / kKvHalfWeightScale;
    EXPECT_NEAR(kept / weight, 1.0f, 1e-4f) << gap;
  }
}

TEST(CudaBitmapAttention, CorruptMasksStayInsideTheMemory) {
  for (const int head_dim : {8, 72, 128, 256}) {
    for (const int keep : {1, head_dim / 2, head_dim}) {
      const KvPages p = KvPagesOf([&] {
        BitmapKvPages pages;
        pages.layout = BitmapKvLayout{DType::kBF16, head_dim, keep, 1};
        return pages;
      }());
      const int last = KvStageBytes(p) + KvTileBytes(p.k_keep * p.element) +
                       (kKvTile - 1) * KvRowStride(p.v_keep * p.element);
      EXPECT_LE(last + head_dim * p.element, KvWarpBytes(p));
    }
  }
}

TEST(CudaBitmapAttention, MaskBitsOfLanes) {
  std::vector<uint8_t> mask(64);
  std::mt19937 random(1);
  for (uint8_t& byte : mask) byte = static_cast<uint8_t>(random());
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    const auto bit = [&](int channel) -> unsigned {
      return channel < head_dim ? mask[static_cast<size_t>(channel / 8)] >> (channel % 8) & 1u : 0u;
    };
    for (int first = 0; first < 256; first += 64) {
      const auto bits = KvMaskBits<64, uint64_t>(mask.data(), head_dim, first);
      const auto all = KvAllBits<64, uint64_t>(head_dim, first);
      for (int i = 0; i < 64; ++i) {
        ASSERT_EQ(bits >> i & 1, bit(first + i));
        ASSERT_EQ(all >> i & 1, first + i < head_dim ? 1u : 0u);
        ASSERT_EQ(KvBit(bits, i) != 0, bit(first + i) != 0);
      }
    }
    for (int first = 0; first < 128; first += 8) {
      const auto bits = KvMaskBits<8, uint32_t>(mask.data(), head_dim, first);
      const auto all = KvAllBits<8, uint32_t>(head_dim, first);
      for (int i = 0; i < 32; ++i) {
        ASSERT_EQ(bits >> i & 1, i < 8 ? bit(first + i) : 0u);
        ASSERT_EQ(all >> i & 1, i < 8 && first + i < head_dim ? 1u : 0u);
      }
    }
  }
}

// Splitting and merging, against the softmax in double.
TEST(CudaBitmapAttention, PartsMergeToTheSoftmax) {
  std::mt19937 random(7);
  for (const int tokens : {1, 5, 64}) {
    for (const int parts : {1, 2, 5, 9}) {
      for (const float scale : {0.1f, 30.0f, 1000.0f}) {
        const std::vector<float> scores = RandomFloats(tokens, random());
        const std::vector<float> values = RandomFloats(tokens, random());
        std::vector<KvWeights> weights;
        std::vector<float> sums;
        for (int part = 0; part < parts; ++part) {
          KvWeights w{kKvLowest, 0.0f};
          float sum = 0.0f;
          for (int t = part; t < tokens; t += parts) {
            // Every third has a score of minus infinity.
            float score[1] = {t % 3 == 2 ? -kInfinity : scores[static_cast<size_t>(t)] * scale};
            sum *= KvRaise(&w, score[0], score);
            sum += score[0] * values[static_cast<size_t>(t)];
          }
          weights.push_back(w);
          sums.push_back(sum);
        }
        float most = kKvLowest, total = 0.0f, got = 0.0f;
        for (const KvWeights& w : weights) most = std::max(most, w.m);
        for (size_t i = 0; i < weights.size(); ++i) {
          total += weights[i].sum * KvPartFactor(weights[i], most);
          got += sums[i] * KvPartFactor(weights[i], most);
        }
        const KvResult result = KvFinish(most, total, true);
        double top = -kInfinity, sum = 0.0, want = 0.0;
        for (int t = 0; t < tokens; ++t) {
          if (t % 3 != 2) {
            top = std::max(top, double{scores[static_cast<size_t>(t)] * scale});
          }
        }
        for (int t = 0; t < tokens; ++t) {
          if (t % 3 == 2) continue;
          const double weight = std::exp(double{scores[static_cast<size_t>(t)] * scale} - top);
          sum += weight;
          want += weight * double{values[static_cast<size_t>(t)]};
        }
        ASSERT_NEAR(got * result.factor, want / sum, 1e-5);
        ASSERT_NEAR(result.lse, top + std::log(sum), 1e-6 * std::max(1.0, std::fabs(top)));
      }
    }
  }
}

TEST(CudaBitmapAttention, EndsOfTheSoftmax) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(KvFinish(kKvLowest, 0.0f, false).factor, 0.0f);
  EXPECT_EQ(KvFinish(kKvLowest, 0.0f, false).lse, -kInfinity);
  EXPECT_TRUE(std::isnan(KvFinish(kKvLowest, 0.0f, true).factor));
  EXPECT_EQ(KvFinish(kKvLowest, 0.0f, true).lse, -kInfinity);
  EXPECT_TRUE(std::isnan(KvFinish(kKvLowest, nan, true).lse));   // a page that does not exist
  EXPECT_TRUE(std::isnan(KvFinish(kKvLowest, nan, false).lse));  // a length that is not possible
  EXPECT_TRUE(std::isnan(KvFinish(0.0f, nan, true).factor));
  EXPECT_EQ(KvPartFactor(KvWeights{kKvLowest, 0.0f}, kKvLowest), 0.0f);
  KvWeights w{kKvLowest, 0.0f};
  float scores[2] = {kInfinity, 1.0f};
  EXPECT_EQ(KvRaise(&w, kInfinity, scores), 0.0f);
  EXPECT_TRUE(std::isnan(w.sum));
  EXPECT_EQ(KvScore(3.0f, 2.0f, 0.0f), 6.0f);
  EXPECT_FLOAT_EQ(KvScore(3.0f, 2.0f, 4.0f), 4.0f * std::tanh(1.5f));
}

}  // namespace
}  // namespace sparsekern::cuda
