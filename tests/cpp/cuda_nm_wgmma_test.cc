// SPDX-License-Identifier: Apache-2.0
// The sm_90a kernel of nm_linear without a GPU: all its threads' copies, registers, descriptors and
// order, with ldmatrix and wgmma.mma_async.sp.m64nNk32 emulated as the PTX ISA defines them.
// Numbers are small integers, so every sum is exact and is compared exactly.
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
#include <tuple>
#include <vector>

#include "cuda_nm_case.h"

namespace sparsekern::cuda {
namespace {

// --- the instruction, as the PTX ISA defines it -------------------------------------------------

// Operand B, [column][token], of 16-bit elements with neighbouring columns side by side
// ("K-major"), that a matrix descriptor finds in shared memory; false where the descriptor's mode
// is another one than the swizzle of 128 bytes from a boundary of 1024 bytes.
//
// Bits 0-13 are the address, 32-45 the distance of one group of eight tokens to the next, both
// without their lowest four; tokens of a group are 128 bytes apart. Bits 4-6 of what address that
// gives for an element are then those bits exclusive or bits 7-9.
bool ReadB(uint64_t descriptor, int tokens, const std::vector<uint8_t>& shared,
           std::vector<float>* b) {
  const auto field = [descriptor](int first, int bits) {
    return static_cast<uint32_t>(descriptor >> first) & ((1u << bits) - 1u);
  };
  if (field(62, 2) != 1 || field(49, 3) != 0) return false;
  const uint32_t start = field(0, 14) * 16, stride = field(32, 14) * 16;
  b->assign(size_t{32} * static_cast<size_t>(tokens), 0.0f);
  for (uint32_t k = 0; k < 32; ++k) {
    for (uint32_t token = 0; token < static_cast<uint32_t>(tokens); ++token) {
      uint32_t address = start + token / 8 * stride + token % 8 * 128 + k * 2;
      address ^= (address >> 7 & 7u) << 4;
      // What lies outside of these stages is nothing that the kernel knows.
      Half v = BF16FromF32(12345.0f);
      if (address >= kSharedBase && address + 2 <= kSharedBase + shared.size()) {
        std::memcpy(&v, shared.data() + (address - kSharedBase), 2);
      }
      (*b)[k * static_cast<uint32_t>(tokens) + token] = F32FromBF16(v);
    }
  }
  return true;
}

// The registers of one warp: A and metadata, and the sums, element i of columns 8 j .. 8 j + 7 of D
// as d[lane][4 j + i].
struct Operand {
  Warp w[2];
  uint32_t metadata[32];
};
using Sums = std::vector<std::vector<float>>;

// What one warp makes of the instruction: rows 16 w .. 16 w + 15 of D are those of warp w of the
// warpgroup, and so are A's.
void Multiply(const Warp& a, const uint32_t (&metadata)[32], int selector,
              const std::vector<float>& b, int tokens, bool add, Sums* d) {
  float dense[16][32];
  ExpandA(a, metadata, selector, dense);
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < tokens / 2; ++e) {
      const int row = lane / 4 + e / 2 % 2 * 8, token = e / 4 * 8 + lane % 4 * 2 + e % 2;
      float sum = 0.0f;
      for (int k = 0; k < 32; ++k) {
        sum += dense[row][k] * b[static_cast<size_t>(k * tokens + token)];
      }
      float& to = (*d)[static_cast<size_t>(lane)][static_cast<size_t>(e)];
      to = add ? to + sum : sum;
    }
  }
}

// --- the kernel ---------------------------------------------------------------------------------

// SparseWgmmaKernel with one of its tiles. Copies are there at once and products made as late as
// the kernel's waits allow, so nothing may be overwritten too early.
template <int Features, int Tokens>
void CheckWgmma(const Packed& p, int64_t x_rows) {
  constexpr int kPanels = Features / kNmPanelRows, kThreads = kPanels * 32;
  using Block = Stages<Features, Tokens, kThreads>;
  static_assert(Block::kBytes % kDescribedRowsBytes == 0);
  static_assert(Block::Copies::kXAt % kDescribedRowsBytes == 0);
  const std::vector<float> x = SmallIntegers(x_rows * p.cols, 11);
  std::vector<float> y(static_cast<size_t>(x_rows * p.rows), -1.0f);
  const int64_t feature_tiles = DivideUp(p.rows, Features), token_tiles = DivideUp(x_rows, Tokens);
  const auto tiles = static_cast<int>(DivideUp(p.cols, kTileCols));
  for (int64_t block = 0; block < feature_tiles * token_tiles; ++block) {
    const ResultTile at = TileOfBlock(block, feature_tiles, token_tiles);
    Block stages(p, x, x_rows, at, kWgmmaStages);
    for (int k = 0; k < kWgmmaStages - 2 && k < tiles; ++k) stages.Fill(k);

    const float unset = std::numeric_limits<float>::quiet_NaN();
    std::vector<Sums> sums(kPanels, Sums(32, std::vector<float>(Tokens / 2, unset)));
    std::vector<Operand> even(kPanels), odd(kPanels);
    struct Group {  // of products under way
      const std::vector<Operand>* operands;
      uint32_t x;
      bool add;
    };
    std::deque<Group> under_way;
    const auto wait = [&](size_t left) {
      for (; under_way.size() > left; under_way.pop_front()) {
        const Group& group = under_way.front();
        for (int half = 0; half < 2; ++half) {
          std::vector<float> b;
          ASSERT_TRUE(ReadB(RowsDescriptor(group.x, half * 4), Tokens, stages.shared, &b));
          for (size_t panel = 0; panel < kPanels; ++panel) {
            const Operand& a = (*group.operands)[panel];
            Multiply(a.w[half], a.metadata, half, b, Tokens, group.add || half != 0, &sums[panel]);
          }
        }
      }
    };
    int stage = 0;
    for (int k = 0; k < tiles; ++k) {
      wait(1);
      std::vector<Operand>& operands = k % 2 == 0 ? even : odd;
      for (int panel = 0; panel < kPanels; ++panel) {
        Operand& a = operands[static_cast<size_t>(panel)];
        for (int half = 0; half < 2; ++half) a.w[half] = stages.LoadA(stage, panel, half);
        stages.LoadMetadata(
            stage, [&](int lane) { return std::pair(panel, MetadataSelector(lane)); }, a.metadata);
      }
      const auto x_at =
          kSharedBase + static_cast<uint32_t>(stage * Block::kBytes + Block::Copies::kXAt);
      under_way.push_back({&operands, x_at, k != 0});
      if (k + kWgmmaStages - 2 < tiles) stages.Fill(WgmmaFreeStage(stage));
      stage = WgmmaNextStage(stage);
    }
    wait(0);

    std::vector<float> result(size_t{Features} * Tokens, unset);
    for (int panel = 0; panel < kPanels; ++panel) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int j = 0; j < Tokens / 8; ++j) {
          for (int e = 0; e < 4; ++e) {
            const int feature = panel * kNmPanelRows + ResultFeature(lane, e);
            const int token = j * 8 + ResultToken(lane, e);
            result[static_cast<size_t>(token * Features + feature)] =
                sums[static_cast<size_t>(panel)][static_cast<size_t>(lane)]
                    [static_cast<size_t>(4 * j + e)];
          }
        }
      }
    }
    StoreTile(result, {Features, Tokens}, at, x_rows, p.rows, &y);
  }
  EXPECT_EQ(y, Expected(p, x, x_rows));
}

using Shape = std::tuple<int64_t, int64_t, int64_t>;  // x_rows, rows, cols

class CudaNmWgmma : public ::testing::TestWithParam<std::tuple<Shape, int, int>> {};

TEST_P(CudaNmWgmma, FragmentsMultiplyToTheProduct) {
  const auto [shape, m, tile] = GetParam();
  const auto [x_rows, rows, cols] = shape;
  const Packed p = Pack(rows, cols, {m / 2, m}, DType::kBF16);
  WithSparseTile(tile, [&, x_rows = x_rows]<int Features, int Tokens>() {
    CheckWgmma<Features, Tokens>(p, x_rows);
  });
}

// One tile of columns; fewer than stages; more, an odd and an even number, ragged in every size.
INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaNmWgmma,
    ::testing::Combine(::testing::Values(Shape{128, 256, 64}, Shape{65, 40, 130},
                                         Shape{130, 150, 37}, Shape{70, 270, 581},
                                         Shape{66, 17, 899}),
                       ::testing::Values(2, 4), ::testing::Values(0, 1)));

// --- descriptors --------------------------------------------------------------------------------

TEST(CudaNmWgmmaDescriptor, HasTheFieldsOfThePtxIsa) {
  // Address, leading and stride offset in units of 16 bytes, the mode of a swizzle of 128 bytes.
  EXPECT_EQ(RowsDescriptor(0x400, 0), 0x40000040'00010040u);
  EXPECT_EQ(RowsDescriptor(0x400, 4), 0x40000040'00010044u);
  EXPECT_EQ(RowsDescriptor(0x38c00, 4), 0x40000040'000138c4u);
}

TEST(CudaNmWgmmaDescriptor, FindsRowsAndNoBitOfItIsWithoutEffect) {
  std::vector<uint8_t> shared(64 * kTileCols * 2);
  for (int row = 0; row < 64; ++row) {
    for (int col = 0; col < kTileCols; ++col) {
      const Half v = BF16FromF32(static_cast<float>((row * 7 + col * 3) % 251));
      std::memcpy(shared.data() + RowOffset(row, col / 8) + col % 8 * 2, &v, 2);
    }
  }
  for (const int half : {0, 1}) {
    const uint64_t descriptor = RowsDescriptor(kSharedBase, half * 4);
    std::vector<float> b;
    ASSERT_TRUE(ReadB(descriptor, 64, shared, &b));
    for (int k = 0; k < 32; ++k) {
      for (int row = 0; row < 64; ++row) {
        EXPECT_EQ(b[static_cast<size_t>(k * 64 + row)],
                  static_cast<float>((row * 7 + (half * 32 + k) * 3) % 251));
      }
    }
    // All but the unused bits and the leading offset, which this swizzle does not have.
    for (const auto& [first, last] : {std::pair(0, 13), {32, 45}, {49, 51}, {62, 63}}) {
      for (int bit = first; bit <= last; ++bit) {
        std::vector<float> other;
        EXPECT_TRUE(!ReadB(descriptor ^ uint64_t{1} << bit, 64, shared, &other) || other != b)
            << bit;
      }
    }
  }
}

// --- the plan -----------------------------------------------------------------------------------

TEST(CudaNmWgmmaPlan, IsForManyRowsOfXOnHopper) {
  constexpr DeviceLimits kHopper = {132, 232448, true}, kOther = {132, 232448};
  const auto plan = [](int64_t x_rows, int64_t rows, Pattern pattern, DType x, DType values,
                       DeviceLimits device) {
    return PlanNmLinear(ProblemOf(x_rows, rows, 4096, pattern, x, values), device);
  };
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const Pattern pattern : {Pattern{2, 4}, Pattern{1, 2}}) {
      EXPECT_EQ(plan(16, 4096, pattern, dtype, dtype, kHopper).kernel, NmKernel::kDecode);
      EXPECT_EQ(plan(64, 4096, pattern, dtype, dtype, kHopper).kernel, NmKernel::kSparseMma);
      EXPECT_EQ(plan(65, 4096, pattern, dtype, dtype, kHopper).kernel, NmKernel::kSparseWgmma);
      EXPECT_EQ(plan(4096, 4096, pattern, dtype, dtype, kHopper).kernel, NmKernel::kSparseWgmma);
      EXPECT_EQ(plan(4096, 4096, pattern, dtype, dtype, kOther).kernel, NmKernel::kSparseMma);
    }
    EXPECT_EQ(plan(4096, 4096, {1, 4}, dtype, dtype, kHopper).kernel, NmKernel::kDenseMma);
    EXPECT_EQ(plan(4096, 4096, {2, 4}, dtype, DType::kI8, kHopper).kernel, NmKernel::kDenseMma);
    EXPECT_EQ(plan(4096, 4096, {2, 4}, DType::kF32, dtype, kHopper).kernel, NmKernel::kFma);
  }
  const DType half = DType::kBF16;
  EXPECT_EQ(plan(4096, 4096, {2, 4}, half, half, kHopper).features, 256);
  EXPECT_EQ(plan(256, 4096, {2, 4}, half, half, kHopper).features, 128);  // too few large tiles
  for (const TileSize tile : kSparseTiles) {
    EXPECT_LE(SparseSharedBytes(tile.features, tile.rows_of_x, kWgmmaStages), kHopper.shared_bytes);
  }
  // Two blocks of the small tile for each multiprocessor, 1 KB of the device's own in each.
  EXPECT_LE(2 * (SparseSharedBytes(128, 64, kWgmmaStages) + 1024), 228 * 1024);
}

TEST(CudaNmWgmmaPlan, StagesGoRound) {
  for (int stage = 0; stage < kWgmmaStages; ++stage) {
    EXPECT_EQ(WgmmaNextStage(stage), (stage + 1) % kWgmmaStages);
    EXPECT_EQ(WgmmaNextStage(WgmmaNextStage(WgmmaFreeStage(stage))), stage);
  }
}

}  // namespace
}  // namespace sparsekern::cuda
