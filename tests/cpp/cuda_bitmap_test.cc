// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of bitmap_linear without a GPU: plans, the cut of the work, and the threads'
// walks over packed matrices, with the kernels' own index and bit arithmetic. Numbers are small
// integers, so every sum is exact and is compared exactly.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <set>
#include <tuple>
#include <vector>

#include "csr_case.h"
#include "cuda_fragments.h"
#include "ops/bitmap_linear/cuda_index.h"
#include "ops/bitmap_linear/cuda_plan.h"
#include "sparsekern/bitmap.h"

namespace sparsekern::cuda {
namespace {

using testing::Elements;
using testing::Random;
using testing::Zeros;

constexpr DeviceLimits kHopper = {132, 232448}, kAda = {128, 101376};

// A matrix of small integers, dense (row-major, zeros where nothing is kept) and packed.
struct Packed {
  int64_t rows, cols;
  std::vector<float> dense;
  Elements values;
  std::vector<uint8_t> structure;
  BitmapLayout layout;

  int64_t count() const { return static_cast<int64_t>(values.size()); }
};

// Density in percent; slices in turn are of that density, empty and full.
Packed Pack(int64_t rows, int64_t cols, int density, DType dtype, uint64_t seed = 1) {
  Packed p;
  p.rows = rows;
  p.cols = cols;
  const auto count = static_cast<size_t>(rows * cols);
  p.dense.assign(count, 0.0f);
  Elements elements = Zeros(dtype, rows * cols);
  std::vector<uint8_t> mask(count, 0);
  Random random(seed);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < cols; ++k) {
      const int64_t turn = (r / 16 + k / 64) % 5;
      const int here = turn == 3 ? 0 : turn == 4 ? 100 : density;
      if (random.Below(100) >= here) continue;
      const auto at = static_cast<size_t>(r * cols + k);
      mask[at] = 1;
      p.dense[at] = static_cast<float>(random.Below(8) + 1) * (random.Below(2) == 0 ? -1 : 1);
      elements.Set(at, p.dense[at]);
    }
  }
  BitmapPacker packer;
  const Status status = packer.Plan(elements.data(), dtype, rows, cols, mask.data());
  EXPECT_TRUE(status.ok()) << status.message();
  p.values = Zeros(dtype, packer.value_count());
  p.structure.assign(packer.structure_bytes(), 0);
  packer.Fill(p.values.data(), p.structure.data());
  p.layout = BitmapLayoutOf(rows, cols);
  return p;
}

// Panel offsets and bits that nobody validated.
void Corrupt(Packed* p) {
  Random random(11);
  for (size_t i = kBitmapHeaderBytes; i < p->structure.size(); ++i) {
    p->structure[i] = i % 3 == 0 ? 255 : static_cast<uint8_t>(random.Bits());
  }
}

LinearProblem ProblemOf(int64_t x_rows, const Packed& p, DType x, DType values) {
  return {x_rows, p.rows, p.cols, p.count(), static_cast<int64_t>(p.structure.size()), x, values};
}
LinearProblem ProblemOf(int64_t x_rows, int64_t rows, int64_t cols, DType x, DType values) {
  return {x_rows, rows, cols, rows * cols / 2, BitmapLayoutOf(rows, cols).bytes, x, values};
}

uint32_t HalfAt(const Packed& p, int64_t panel, int64_t word, int half) {
  const int64_t at = SliceAt(p.layout, panel, word) + half * 4;
  EXPECT_GE(at, p.layout.bitmap_at);
  EXPECT_LE(at + 4, static_cast<int64_t>(p.structure.size()));
  uint32_t bits;
  std::memcpy(&bits, p.structure.data() + at, 4);
  return bits;
}

int SliceCount(const Packed& p, int64_t panel, int64_t word) {
  int count = 0;
  for (int half = 0; half < kSliceHalves; ++half) count += CountBits(HalfAt(p, panel, word, half));
  return count;
}

// --- layout and plan ----------------------------------------------------------------------------

TEST(CudaBitmapLayout, AgreesWithTheParser) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 1}, {16, 64}, {17, 65}, {127, 200}, {128, 63}, {300, 129}}) {
    const Packed p = Pack(rows, cols, 50, DType::kF32);
    BitmapStructure s;
    ASSERT_TRUE(ParseBitmapStructure(p.structure.data(), p.structure.size(), "test", &s).ok());
    EXPECT_EQ(p.layout.panels, s.panels);
    EXPECT_EQ(p.layout.words, s.words);
    EXPECT_EQ(p.layout.bytes, static_cast<int64_t>(p.structure.size()));
    for (int64_t panel = 0; panel < s.panels; ++panel) {
      EXPECT_EQ(PanelFirst(p.structure.data(), panel, p.count()), s.panel_ptr(panel));
      EXPECT_EQ(p.structure.data() + SliceAt(p.layout, panel, s.words - 1),
                s.slice(panel, s.words - 1));
    }
  }
}

TEST(CudaBitmapLayout, RefusesAHeaderThatDoesNotFit) {
  Packed p = Pack(40, 200, 50, DType::kF32);
  const auto fits = [&](int64_t rows, int64_t cols, int64_t count) {
    return BitmapHeaderFits(p.structure.data(), rows, cols, count);
  };
  EXPECT_TRUE(fits(40, 200, p.count()));
  EXPECT_FALSE(fits(41, 200, p.count()));
  EXPECT_FALSE(fits(40, 199, p.count()));
  EXPECT_FALSE(fits(40, 200, p.count() - 1));
  for (const int byte : {0, 4, 8, 16, 24, 31}) {
    p.structure[static_cast<size_t>(byte)] ^= 1;
    EXPECT_FALSE(fits(40, 200, p.count())) << byte;
    p.structure[static_cast<size_t>(byte)] ^= 1;
  }
}

TEST(CudaBitmapLayout, CorruptOffsetsStayInsideTheArray) {
  Packed p = Pack(40, 200, 50, DType::kF32);
  for (const uint64_t bad : {~uint64_t{0}, uint64_t{1} << 63, uint64_t{1} << 40}) {
    std::memcpy(p.structure.data() + kBitmapHeaderBytes + 8, &bad, 8);
    EXPECT_EQ(PanelFirst(p.structure.data(), 1, p.count()), p.count());
  }
  EXPECT_EQ(ValuesLeft(10, 10), 0);
  EXPECT_EQ(ValuesLeft(17, 10), 0);
  EXPECT_EQ(ValuesLeft(3, 10), 7);
  EXPECT_EQ(ValuesLeft(0, int64_t{1} << 40), kSliceMaxValues);
}

TEST(CudaBitmapPlan, ChoosesByRowsAndDtypes) {
  const auto kernel = [](int64_t x_rows, DType x, DType values) {
    return PlanBitmapLinear(ProblemOf(x_rows, 8192, 8192, x, values), kHopper).kernel;
  };
  for (const DType x : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const DType values : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
      for (const int64_t x_rows : {1, 2, 4}) {
        EXPECT_EQ(kernel(x_rows, x, values), BitmapKernel::kDecode);
      }
      // Rounding values to the dtype of x would lose what fp32 holds.
      const bool tensor_cores = x != DType::kF32 && (values == x || values == DType::kI8);
      for (const int64_t x_rows : {5, 16}) {
        EXPECT_EQ(kernel(x_rows, x, values),
                  tensor_cores ? BitmapKernel::kDecodeMma : BitmapKernel::kDecode);
      }
      EXPECT_EQ(kernel(17, x, values),
                tensor_cores ? BitmapKernel::kDecodeMma : BitmapKernel::kFma);
      EXPECT_EQ(kernel(64, x, values),
                tensor_cores ? BitmapKernel::kDecodeMma : BitmapKernel::kFma);
      EXPECT_EQ(kernel(65, x, values), tensor_cores ? BitmapKernel::kDenseMma : BitmapKernel::kFma);
    }
  }
}

TEST(CudaBitmapPlan, SizesThatAreNoMatrixsAreRefused) {
  LinearProblem p = ProblemOf(1, 40, 200, DType::kF32, DType::kF32);
  EXPECT_TRUE(PlanBitmapLinear(p, kHopper).possible);
  p.structure_bytes += 64;
  EXPECT_FALSE(PlanBitmapLinear(p, kHopper).possible);
  p = ProblemOf(1, 40, 200, DType::kF32, DType::kF32);
  p.value_count = 40 * 200 + 1;
  EXPECT_FALSE(PlanBitmapLinear(p, kHopper).possible);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 8},
                                   {8, 0},
                                   {-1, 8},
                                   {int64_t{1} << 31, 8},
                                   {8, INT64_MAX}}) {
    p.rows = rows;
    p.cols = cols;
    EXPECT_FALSE(PlanBitmapLinear(p, kHopper).possible);
  }
}

TEST(CudaBitmapPlan, BlocksFitTheDevice) {
  for (const DeviceLimits& device : {kHopper, kAda}) {
    for (const int64_t rows : {1, 300, 8192, 200000}) {
      for (const int64_t cols : {16, 700, 8192, 1 << 20}) {
        for (const int64_t x_rows : {0, 1, 3, 8, 16, 64}) {
          for (const auto& [x, values] : {std::pair<DType, DType>{DType::kF32, DType::kF32},
                                          {DType::kF32, DType::kI8},
                                          {DType::kBF16, DType::kF32},
                                          {DType::kBF16, DType::kBF16}}) {
            const LinearProblem p = ProblemOf(x_rows, rows, cols, x, values);
            const BitmapPlan plan = PlanBitmapLinear(p, device);
            ASSERT_TRUE(plan.possible);
            if (plan.kernel == BitmapKernel::kFma) continue;
            EXPECT_LE(plan.shared_bytes, device.shared_bytes);
            EXPECT_GE(plan.ranges, 1);
            EXPECT_LE(plan.panels * plan.ranges, kBitmapMaxWarps);
            EXPECT_EQ(plan.shared_bytes,
                      plan.panels * plan.ranges *
                          WarpBytes(static_cast<int>(SizeOf(values)), static_cast<int>(SizeOf(x)),
                                    plan.rows_of_x));
            // The sums of the warps take the place of the copies.
            EXPECT_LE(plan.panels * plan.ranges * plan.rows_of_x * kBitmapRows * 4,
                      plan.shared_bytes);
            EXPECT_GE(plan.parts, 1);
            EXPECT_LE(plan.parts, kBitmapMaxParts);
          }
        }
      }
    }
  }
}

TEST(CudaBitmapPlan, FewPanelsAreSplit) {
  const auto parts = [](int64_t rows, int64_t x_rows) {
    return PlanBitmapLinear(ProblemOf(x_rows, rows, 28672, DType::kBF16, DType::kBF16), kHopper)
        .parts;
  };
  EXPECT_EQ(parts(8192, 1), 1);  // 512 panels
  EXPECT_EQ(parts(2048, 1), 4);
  EXPECT_EQ(parts(8192, 16), 4);
  EXPECT_EQ(parts(16, 1), 14);  // not below four words for a warp
}

// --- the cut of the work ------------------------------------------------------------------------

TEST(CudaBitmapWork, EachWordIsTakenOnceAndAllBeforeItCounted) {
  for (const int64_t panels : {1, 3, 8}) {
    for (const int64_t words : {1, 2, 7, 33, 100}) {
      for (const int in_block : {1, 2, 4}) {
        for (const int ranges : {1, 2, 8}) {
          for (const int parts : {1, 2, 5}) {
            constexpr int64_t kChunks = 2;
            std::vector<int> taken(static_cast<size_t>(panels * words * kChunks), 0);
            for (int64_t block = 0; block < DivideUp(panels, in_block) * kChunks; ++block) {
              for (int part = 0; part < parts; ++part) {
                std::vector<BitmapWork> warps;
                for (int warp = 0; warp < in_block * ranges; ++warp) {
                  warps.push_back(
                      WorkOfWarp(words, in_block, ranges, kChunks, parts, block, part, warp));
                }
                for (const BitmapWork& w : warps) {
                  if (w.panel >= panels) continue;
                  for (int64_t q = w.words.begin; q < w.words.end; ++q) {
                    ++taken[static_cast<size_t>((w.panel * words + q) * kChunks + w.chunk)];
                  }
                  // What FirstValueOf adds up.
                  std::vector<int> before(static_cast<size_t>(words), 0);
                  for (int i = 0; i < ranges; ++i) {
                    const auto& other = warps[static_cast<size_t>(w.panel_in_block * ranges + i)];
                    ASSERT_EQ(other.panel, w.panel);
                    for (int64_t q = other.before.begin; q < other.before.end; ++q) {
                      ++before[static_cast<size_t>(q)];
                    }
                    if (i >= w.range_in_block) continue;
                    for (int64_t q = other.words.begin; q < other.words.end; ++q) {
                      ++before[static_cast<size_t>(q)];
                    }
                  }
                  for (int64_t q = 0; q < words; ++q) {
                    ASSERT_EQ(before[static_cast<size_t>(q)], q < w.words.begin ? 1 : 0);
                  }
                }
              }
            }
            for (const int times : taken) ASSERT_EQ(times, 1);
          }
        }
      }
    }
  }
}

// --- nibbles ------------------------------------------------------------------------------------

TEST(CudaBitmapIndex, NibblesFindTheirValues) {
  Random random(5);
  for (int i = 0; i < 2000; ++i) {
    const uint32_t half = i == 0 ? 0 : i == 1 ? ~0u : random.Bits();
    for (int shift = 0; shift < 32; shift += 4) {
      int before = 0;
      for (int bit = 0; bit < shift; ++bit) before += static_cast<int>(half >> bit & 1u);
      ASSERT_EQ(ValuesBelow(half, shift), before);
      const uint32_t nibble = NibbleAt(half, shift);
      for (int c = 0, position = 0; c < 4; ++c) {
        const bool kept = (half >> (shift + c) & 1u) != 0;
        ASSERT_EQ(NibbleKeeps(nibble, c) != 0, kept);
        ASSERT_EQ(NibblePosition(nibble, c), position);
        position += kept ? 1 : 0;
      }
    }
  }
}

TEST(CudaBitmapIndex, PassesAndFragmentsTakeEachNibbleOnce) {
  std::set<std::pair<int, int>> of_passes, of_fragments;
  for (int lane = 0; lane < 32; ++lane) {
    for (int pass = 0; pass < kSlicePasses; ++pass) {
      const int row = PassRow(pass, lane), column = PassColumn(lane);
      EXPECT_EQ(PassHalf(pass, lane), row * 2 + column / 32);
      EXPECT_EQ(PassShift(lane), column % 32);
      EXPECT_TRUE(of_passes.insert({row, column}).second);
    }
    for (int step = 0; step < kBitmapCols / 16; ++step) {
      for (int lower = 0; lower < 2; ++lower) {
        const int row = lane / 4 + 8 * lower, column = MmaColumn(step, lane);
        EXPECT_EQ(MmaHalf(step, lane, lower), row * 2 + column / 32);
        EXPECT_EQ(MmaShift(step, lane), column % 32);
        EXPECT_TRUE(of_fragments.insert({row, column}).second);
      }
    }
  }
  EXPECT_EQ(of_passes.size(), size_t{16 * 16});
  EXPECT_EQ(of_fragments, of_passes);
}

TEST(CudaBitmapIndex, CopiesBeginAtTheChunkOfTheirFirstValueEvenBeyond32Bits) {
  for (const int64_t group_at : {int64_t{0}, int64_t{1234}, (int64_t{1} << 32) - 100,
                                 (int64_t{7} << 32) - 2, (int64_t{5} << 34) + 16}) {
    for (int before = 0; before <= 3 * kSliceMaxValues * 4; before += 2) {
      const auto begin = static_cast<uint32_t>(group_at + before);
      const int64_t from = FirstChunk(group_at, begin);
      ASSERT_EQ(from % 16, 0);
      ASSERT_EQ(from, (group_at + before) / 16 * 16);
      ASSERT_EQ(InCopy(begin, begin), static_cast<uint32_t>(group_at + before - from));
      ASSERT_EQ(InCopy(begin + 2048, begin), InCopy(begin, begin) + 2048);
      ASSERT_EQ(InCopy(0, begin) + begin, InCopy(begin, begin)) << "what a lane adds up";
      for (const uint32_t bytes : {0u, 2u, 16u, 2048u}) {
        const auto needed = static_cast<int>(group_at + before - from + bytes);
        ASSERT_EQ(ChunksOf(begin, begin + bytes), bytes == 0 ? 0 : (needed + 15) / 16);
      }
    }
  }
  EXPECT_EQ(ChunksInside(3, 32, 80), 3);
  EXPECT_EQ(ChunksInside(3, 32, 65), 3);
  EXPECT_EQ(ChunksInside(3, 32, 64), 2);
  EXPECT_EQ(ChunksInside(3, 32, 33), 1);
  EXPECT_EQ(ChunksInside(3, 32, 32), 0);
  EXPECT_EQ(ChunksInside(3, int64_t{1} << 40, 32), 0);
  EXPECT_EQ(ChunksInside(3, 0, int64_t{1} << 40), 3);
  EXPECT_EQ(ChunkBytes(BytesLeft(32, 65), 2), 1);
  EXPECT_EQ(ChunkBytes(BytesLeft(32, 65), 1), 16);
  EXPECT_EQ(ChunkBytes(BytesLeft(0, int64_t{1} << 40), CopyBytes(4) / 16 - 1), 16);
}

TEST(CudaBitmapIndex, ChunksOfXFillTheirRowsWithoutOverlap) {
  for (const int bytes : {2, 4}) {
    for (const int rows : {1, 4, 16}) {
      std::set<int> at;
      for (int c = 0; c < XChunks(bytes, rows); ++c) {
        const XChunk chunk = XChunkOf(c, bytes);
        EXPECT_EQ(chunk.at, chunk.row * XStride(bytes) + chunk.column * bytes);
        EXPECT_EQ(chunk.at % 16, 0);
        EXPECT_LE(CopyBytes(2) + chunk.at + 16, StageBytes(2, bytes, rows));
        EXPECT_TRUE(at.insert(chunk.at).second);
      }
      EXPECT_EQ(static_cast<int>(at.size()) * 16, rows * kBitmapCols * bytes);
    }
  }
}

TEST(CudaBitmapIndex, FragmentsOfXAreReadWithoutBankConflicts) {
  // Eight bytes a lane: half a warp at a time.
  for (int step = 0; step < 4; ++step) {
    for (int half = 0; half < 2; ++half) {
      std::set<int> banks;
      for (int lane = half * 16; lane < half * 16 + 16; ++lane) {
        banks.insert((lane / 4 * XStride(2) + MmaColumn(step, lane) * 2) / 8 % 16);
      }
      EXPECT_EQ(banks.size(), 16u);
    }
  }
}

// --- the kernels' walks
// ---------------------------------------------------------------------------

// A warp's memory, as Stream keeps it: entries of two groups and the stages, and a copy of the
// arrays' bytes, so that every read is checked.
class WarpWalk {
 public:
  WarpWalk(const Packed& p, const std::vector<float>& x, const LinearProblem& problem,
           const BitmapPlan& plan, const BitmapWork& work, int64_t first_value)
      : p_(p),
        problem_(problem),
        plan_(plan),
        work_(work),
        bytes_(static_cast<int>(SizeOf(problem.value_dtype))),
        x_bytes_(static_cast<int>(SizeOf(problem.x_dtype))),
        group_at_(first_value * bytes_),
        x_(x) {
    memory.assign(static_cast<size_t>(WarpBytes(bytes_, x_bytes_, plan.rows_of_x)), 0xee);
    slices = work.panel < p.layout.panels ? static_cast<int>(work.words.end - work.words.begin) : 0;
  }

  std::vector<uint8_t> memory;
  int slices;

  int Entries(int t) const {
    return t / kGroupSlices % 2 * kEntryBytes + t % kGroupSlices * kSliceHalves * 8;
  }
  int Stage(int t) const {
    return 2 * kEntryBytes +
           t % StagesOf(bytes_, plan_.rows_of_x) * StageBytes(bytes_, x_bytes_, plan_.rows_of_x);
  }
  BitmapEntry Entry(int at) const {
    BitmapEntry e;
    EXPECT_LE(static_cast<size_t>(at) + 8, memory.size());
    std::memcpy(&e, memory.data() + at, 8);
    return e;
  }

  void Issue(int t) {
    if (t >= slices) return;
    if (t % kGroupSlices == 0) MakeEntries(t);
    const uint32_t begin = Entry(Entries(t)).at, end = Entry(Entries(t) + kSliceHalves * 8).at;
    const int64_t from = FirstChunk(group_at_, begin), total = p_.count() * bytes_;
    const int chunks = ChunksInside(ChunksOf(begin, end), from, total);
    for (int c = 0; c < chunks; ++c) {
      const int64_t at = from + c * 16;
      const int bytes = ChunkBytes(BytesLeft(from, total), c);
      ASSERT_GE(at, 0);
      ASSERT_GE(bytes, 1);
      ASSERT_LE(bytes, 16);
      ASSERT_LE(at + bytes, total) << "nothing is read beyond the last value";
      ASSERT_TRUE(bytes == 16 || at + bytes == total);
      ASSERT_LE((c + 1) * 16, CopyBytes(bytes_));
      uint8_t* to = memory.data() + Stage(t) + c * 16;
      std::memset(to, 0, 16);
      std::memcpy(to, p_.values.bytes.data() + at, static_cast<size_t>(bytes));
    }
    const int64_t col = (work_.words.begin + t) * kBitmapCols;
    for (int c = 0; c < XChunks(x_bytes_, plan_.rows_of_x); ++c) {
      const XChunk chunk = XChunkOf(c, x_bytes_);
      const int64_t m = work_.chunk * plan_.rows_of_x + chunk.row, k = col + chunk.column;
      for (int i = 0; i < 16 / x_bytes_; ++i) {
        // Columns beyond the matrix are zeros: PadRows, or the copy.
        const bool there = m < problem_.x_rows && k + i < p_.cols;
        const float v = there ? x_[static_cast<size_t>(m * p_.cols + k + i)] : 0.0f;
        const Half half = BF16FromF32(v);
        uint8_t* to = memory.data() + Stage(t) + CopyBytes(bytes_) + chunk.at + i * x_bytes_;
        std::memcpy(to, x_bytes_ == 4 ? static_cast<const void*>(&v) : &half,
                    static_cast<size_t>(x_bytes_));
      }
    }
  }

  // The four values that a lane reads for a nibble, zeros where nothing is kept.
  std::array<float, 4> Nibble(int t, int half, int shift) const {
    const BitmapEntry e = Entry(Entries(t) + half * 8);
    const uint32_t nibble = NibbleAt(e.bits, shift);
    uint32_t at = static_cast<uint32_t>(Stage(t)) + InCopy(0, Entry(Entries(t)).at) + e.at +
                  static_cast<uint32_t>(CountBits(e.bits & BelowMask(shift)) * bytes_);
    std::array<float, 4> out = {};
    for (int i = 0; i < 4; ++i) {
      // Read whether kept or not: inside the stage.
      EXPECT_GE(static_cast<int>(at), Stage(t));
      EXPECT_LE(static_cast<int>(at) + bytes_, Stage(t) + CopyBytes(bytes_));
      EXPECT_EQ(at % static_cast<uint32_t>(bytes_), 0u);
      Elements one = Zeros(problem_.value_dtype, 1);
      std::memcpy(one.data(), memory.data() + at, static_cast<size_t>(bytes_));
      if (NibbleKeeps(nibble, i) != 0) out[static_cast<size_t>(i)] = static_cast<float>(one[0]);
      if (i < 3) at += NibbleStep(nibble, i, bytes_);
    }
    return out;
  }
  float X(int t, int row, int column) const {
    const uint8_t* at =
        memory.data() + Stage(t) + CopyBytes(bytes_) + row * XStride(x_bytes_) + column * x_bytes_;
    float v;
    Half half;
    std::memcpy(&v, at, sizeof v);
    std::memcpy(&half, at, sizeof half);
    return x_bytes_ == 4 ? v : F32FromBF16(half);
  }

 private:
  void MakeEntries(int t) {
    uint32_t bits[32][4] = {};
    int until = 0;
    group_at_ += group_bytes_;
    for (int lane = 0; lane < 32; ++lane) {
      const int slice = t + lane / (kSliceHalves / 4);
      int own = 0;
      for (int i = 0; i < 4 && slice < slices; ++i) {
        bits[lane][i] =
            HalfAt(p_, work_.panel, work_.words.begin + slice, lane % (kSliceHalves / 4) * 4 + i);
        own += CountBits(bits[lane][i]);
      }
      const LaneEntries e =
          EntriesOfLane(bits[lane], static_cast<uint32_t>(group_at_ + until * bytes_), bytes_);
      until += own;
      uint8_t* to = memory.data() + t / kGroupSlices % 2 * kEntryBytes + lane * 32;
      std::memcpy(to, e.of, 32);
      const BitmapEntry end = {0, e.end};
      if (lane == 31) std::memcpy(to + 32, &end, 8);
    }
    group_bytes_ = until * bytes_;
  }

  const Packed& p_;
  const LinearProblem& problem_;
  const BitmapPlan& plan_;
  const BitmapWork& work_;
  int bytes_, x_bytes_;
  int64_t group_at_;
  int group_bytes_ = 0;
  const std::vector<float>& x_;
};

// DecodeKernel or DecodeMmaKernel, all blocks and parts.
std::vector<float> WalkDecode(const Packed& p, const std::vector<float>& x,
                              const LinearProblem& problem, const BitmapPlan& plan) {
  std::vector<float> y(static_cast<size_t>(problem.x_rows * p.rows), 0.0f);
  std::vector<int> stored(y.size(), 0);
  const int stages = StagesOf(static_cast<int>(SizeOf(problem.value_dtype)), plan.rows_of_x);
  for (int part = 0; part < plan.parts; ++part) {
    for (int64_t block = 0; block < BitmapBlocks(problem, plan); ++block) {
      std::vector<BitmapWork> works;
      for (int warp = 0; warp < plan.panels * plan.ranges; ++warp) {
        works.push_back(WorkOfWarp(p.layout.words, plan.panels, plan.ranges,
                                   BitmapChunks(problem, plan), plan.parts, block, part, warp));
      }
      for (const BitmapWork& work : works) {
        if (work.panel >= p.layout.panels) continue;
        int64_t first = PanelFirst(p.structure.data(), work.panel, p.count());
        for (int64_t q = 0; q < work.words.begin; ++q) first += SliceCount(p, work.panel, q);
        WarpWalk walk(p, x, problem, plan, work, first);
        std::vector<float> sums(static_cast<size_t>(plan.rows_of_x * kBitmapRows), 0.0f);
        for (int t = 0; t < stages - 1; ++t) walk.Issue(t);
        for (int t = 0; t < walk.slices; ++t) {
          walk.Issue(t + stages - 1);
          if (plan.kernel == BitmapKernel::kDecode) {
            for (int lane = 0; lane < 32; ++lane) {
              for (int pass = 0; pass < kSlicePasses; ++pass) {
                const auto w = walk.Nibble(t, PassHalf(pass, lane), PassShift(lane));
                for (int m = 0; m < plan.rows_of_x; ++m) {
                  float& sum = sums[static_cast<size_t>(m * kBitmapRows + PassRow(pass, lane))];
                  for (int i = 0; i < 4; ++i) {
                    sum += w[static_cast<size_t>(i)] * walk.X(t, m, PassColumn(lane) + i);
                  }
                }
              }
            }
            continue;
          }
          for (int step = 0; step < kBitmapCols / 16; ++step) {
            Warp a = {}, b = {};
            for (int lane = 0; lane < 32; ++lane) {
              for (int lower = 0; lower < 2; ++lower) {
                const auto w = walk.Nibble(t, MmaHalf(step, lane, lower), MmaShift(step, lane));
                for (int i = 0; i < 4; ++i) {
                  a.r[lane][lower + i / 2 * 2].half[i % 2] = BF16FromF32(w[static_cast<size_t>(i)]);
                }
              }
              for (int j = 0; j < kMmaRowsAtOnce / 8; ++j) {
                for (int i = 0; i < 4; ++i) {
                  b.r[lane][2 * j + i / 2].half[i % 2] =
                      BF16FromF32(walk.X(t, j * 8 + lane / 4, MmaColumn(step, lane) + i));
                }
              }
            }
            for (int j = 0; j < kMmaRowsAtOnce / 8; ++j) {
              float d[32][4] = {};
              Mma(d, a, b, 2 * j, 2 * j + 1);
              for (int lane = 0; lane < 32; ++lane) {
                for (int i = 0; i < 4; ++i) {
                  sums[static_cast<size_t>((j * 8 + ResultToken(lane, i)) * kBitmapRows +
                                           ResultFeature(lane, i))] += d[lane][i];
                }
              }
            }
          }
        }
        for (int m = 0; m < plan.rows_of_x; ++m) {
          for (int r = 0; r < kBitmapRows; ++r) {
            const int64_t row = work.chunk * plan.rows_of_x + m, n = work.panel * kBitmapRows + r;
            if (row >= problem.x_rows || n >= p.rows) continue;
            const auto at = static_cast<size_t>(row * p.rows + n);
            y[at] += sums[static_cast<size_t>(m * kBitmapRows + r)];
            ++stored[at];
          }
        }
      }
    }
  }
  for (const int times : stored) EXPECT_EQ(times, plan.ranges * plan.parts);
  return y;
}

using Shape = std::tuple<int64_t, int64_t>;  // rows, cols

class CudaBitmapDecode : public ::testing::TestWithParam<std::tuple<Shape, DType>> {};

TEST_P(CudaBitmapDecode, WarpsMultiplyToTheProduct) {
  const auto [shape, dtype] = GetParam();
  const auto [rows, cols] = shape;
  for (const int density : {5, 50}) {
    const Packed p = Pack(rows, cols, density, dtype);
    for (const int64_t x_rows : {1, 3, 20}) {
      const std::vector<float> x = SmallIntegers(x_rows * cols, 7);
      for (const DType x_dtype : {DType::kF32, DType::kBF16}) {
        const LinearProblem problem = ProblemOf(x_rows, p, x_dtype, dtype);
        BitmapPlan plan = PlanBitmapLinear(problem, kHopper);
        if (plan.kernel == BitmapKernel::kFma || plan.kernel == BitmapKernel::kDenseMma) continue;
        const std::vector<float> expected = Expected(p, x, x_rows);
        EXPECT_EQ(WalkDecode(p, x, problem, plan), expected) << x_rows;
        // Short ranges, and one range of several groups of slices.
        plan.parts = density == 5 ? 3 : 1;
        plan.ranges = density == 5 ? 2 : 1;
        EXPECT_EQ(WalkDecode(p, x, problem, plan), expected) << x_rows;
      }
    }
  }
}

TEST_P(CudaBitmapDecode, AnyBytesAreSafe) {
  const auto [shape, dtype] = GetParam();
  const auto [rows, cols] = shape;
  for (const int density : {0, 40}) {
    Packed p = Pack(rows, cols, density, dtype);
    Corrupt(&p);
    for (const int64_t x_rows : {1, 6}) {
      const std::vector<float> x = SmallIntegers(x_rows * cols, 7);
      const LinearProblem problem = ProblemOf(x_rows, p, DType::kBF16, dtype);
      WalkDecode(p, x, problem, PlanBitmapLinear(problem, kHopper));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaBitmapDecode,
    ::testing::Combine(::testing::Values(Shape{1, 1}, Shape{16, 64}, Shape{40, 150}, Shape{17, 65},
                                         Shape{33, 700}),
                       ::testing::Values(DType::kF32, DType::kBF16, DType::kI8)));

// The batch kernels' expansion of a slice: Expand of cuda_dense_mma.cu and cuda_fma.cu. Calls
// store(row, column, element of values) for what is kept and inside the array.
template <typename Store>
void ExpandSlice(const Packed& p, int64_t panel, int64_t k, int64_t* next, Store store) {
  int until = 0, first_of_half[kSliceHalves];
  uint32_t bits[kSliceHalves];
  for (int lane = 0; lane < 32; ++lane) {
    first_of_half[lane] = until;
    until += CountBits(bits[lane] = HalfAt(p, panel, k, lane));
  }
  const int left = ValuesLeft(*next, p.count());
  for (int pass = 0; pass < kSlicePasses; ++pass) {
    for (int lane = 0; lane < 32; ++lane) {
      const int half = PassHalf(pass, lane), shift = PassShift(lane);
      const int first = first_of_half[half] + ValuesBelow(bits[half], shift);
      const uint32_t nibble = NibbleAt(bits[half], shift);
      for (int i = 0; i < 4; ++i) {
        const int at = first + NibblePosition(nibble, i);
        if (NibbleKeeps(nibble, i) == 0 || at >= left) continue;
        ASSERT_LT(*next + at, p.count());
        store(PassRow(pass, lane), PassColumn(lane) + i, static_cast<size_t>(*next + at));
      }
    }
  }
  *next += until;
}

TEST(CudaBitmapBatch, TilesRebuildTheMatrix) {
  for (const auto& [rows, cols] : {Shape{1, 1}, Shape{40, 150}, Shape{130, 64}, Shape{17, 65}}) {
    for (const DType dtype : {DType::kF32, DType::kI8}) {
      const Packed p = Pack(rows, cols, 50, dtype);
      std::vector<float> dense(p.dense.size(), 0.0f);
      for (int64_t panel = 0; panel < p.layout.panels; ++panel) {
        int64_t next = PanelFirst(p.structure.data(), panel, p.count());
        for (int64_t k = 0; k < p.layout.words; ++k) {
          ExpandSlice(p, panel, k, &next, [&](int row, int column, size_t at) {
            const int64_t n = panel * kBitmapRows + row, c = k * kBitmapCols + column;
            ASSERT_TRUE(n < p.rows && c < p.cols);
            dense[static_cast<size_t>(n * p.cols + c)] += static_cast<float>(p.values[at]);
          });
        }
      }
      EXPECT_EQ(dense, p.dense);
    }
  }
}

TEST(CudaBitmapBatch, AnyBytesAreSafe) {
  Packed p = Pack(40, 150, 30, DType::kF32);
  Corrupt(&p);
  for (int64_t panel = 0; panel < p.layout.panels; ++panel) {
    int64_t next = PanelFirst(p.structure.data(), panel, p.count());
    for (int64_t k = 0; k < p.layout.words; ++k) {
      ExpandSlice(p, panel, k, &next, [](int, int, size_t) {});
    }
  }
}

// DenseMmaKernel: a warp's panel in shared memory, and its fragments.
TEST(CudaBitmapBatch, ExpandedTilesMultiplyToTheProduct) {
  constexpr int kTile = kDenseTile.features;
  const int64_t x_rows = 20, rows = 40, cols = 150;
  const Packed p = Pack(rows, cols, 50, DType::kBF16);
  const std::vector<float> x = SmallIntegers(x_rows * cols, 3);
  std::vector<float> y(static_cast<size_t>(x_rows * rows), 0.0f);
  std::vector<int64_t> next;
  for (int64_t panel = 0; panel < p.layout.panels; ++panel) {
    next.push_back(PanelFirst(p.structure.data(), panel, p.count()));
  }
  for (int64_t k = 0; k < p.layout.words; ++k) {
    std::vector<uint8_t> shared(2 * kTile * kTileCols * 2, 0);
    const int x_at = kTile * kTileCols * 2;
    for (int64_t panel = 0; panel < p.layout.panels; ++panel) {
      uint8_t* w = shared.data() + panel * kBitmapRows * kTileCols * 2;
      ExpandSlice(p, panel, k, &next[static_cast<size_t>(panel)],
                  [&](int row, int column, size_t at) {
                    std::memcpy(w + RowOffset(row, column / 8) + column % 8 * 2,
                                p.values.bytes.data() + at * 2, 2);
                  });
    }
    FillX(x, x_rows, cols, 0, k * kTileCols, kTile, x_at, &shared);
    for (int q = 0; q < kTileCols / 16; ++q) {
      for (int feature = 0; feature < rows; feature += 16) {
        const Warp a = LoadMatrices(
            shared,
            [&](int lane) {
              const RowAddress r = DenseAOfLane(lane);
              return RowOffset(feature + r.row, q * 2 + r.chunk);
            },
            false);
        for (int token = 0; token < 32; token += 16) {
          const Warp b = LoadMatrices(
              shared,
              [&](int lane) {
                const RowAddress r = DenseBOfLane(lane);
                return x_at + RowOffset(token + r.row, q * 2 + r.chunk);
              },
              false);
          for (int j = 0; j < 2; ++j) {
            float d[32][4] = {};
            Mma(d, a, b, 2 * j, 2 * j + 1);
            for (int lane = 0; lane < 32; ++lane) {
              for (int i = 0; i < 4; ++i) {
                const int64_t m = token + 8 * j + ResultToken(lane, i);
                const int64_t n = feature + ResultFeature(lane, i);
                if (m < x_rows && n < rows) y[static_cast<size_t>(m * rows + n)] += d[lane][i];
              }
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(y, Expected(p, x, x_rows));
}

}  // namespace
}  // namespace sparsekern::cuda
