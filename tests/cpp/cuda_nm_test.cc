// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of nm_linear without a GPU: their threads' walks over packed matrices, with the
// kernels' own index arithmetic, and ldmatrix, mma and mma.sp emulated as the PTX ISA defines their
// fragments. Numbers are small integers, so every sum is exact and is compared exactly.
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <tuple>
#include <vector>

#include "csr_case.h"
#include "cuda_nm_case.h"

namespace sparsekern::cuda {
namespace {

using testing::Elements;
using testing::Random;
using testing::Zeros;

constexpr Pattern kPatterns[] = {{1, 2}, {1, 4},  {2, 4},  {3, 4},   {1, 8},  {2, 8},  {4, 8},
                                 {7, 8}, {1, 16}, {3, 16}, {15, 16}, {1, 32}, {5, 32}, {31, 32}};

uint32_t WordAt(const Packed& p, int64_t panel, int64_t q, int lane) {
  const int64_t at = kNmHeaderBytes + ((panel * p.layout.words + q) * kNmPanelRows + lane) * 4;
  EXPECT_LE(at + 4, static_cast<int64_t>(p.structure.size()));
  uint32_t word;
  std::memcpy(&word, p.structure.data() + at, 4);
  return word;
}

// --- layout and plan ----------------------------------------------------------------------------

TEST(CudaNmLayout, AgreesWithTheParser) {
  for (const Pattern pattern : kPatterns) {
    for (const int64_t cols : {1, 31, 64, 200}) {
      const Packed p = Pack(20, cols, pattern, DType::kF32);
      NmStructure s;
      ASSERT_TRUE(ParseNmStructure(p.structure.data(), p.structure.size(), "test", &s).ok());
      EXPECT_EQ(p.layout.steps, s.steps);
      EXPECT_EQ(p.layout.words, s.words);
      EXPECT_EQ(p.layout.panels, s.panels);
      EXPECT_EQ(p.layout.window, s.window);
      EXPECT_EQ(p.layout.field_bits, s.field_bits);
      EXPECT_EQ(p.layout.steps_per_window, s.steps_per_window());
    }
  }
}

TEST(CudaNmLayout, RefusesWhatDoesNotFit) {
  Packed p = Pack(40, 200, {2, 4}, DType::kF32);
  const auto bytes = static_cast<int64_t>(p.structure.size());
  const auto count = static_cast<int64_t>(p.values.size());
  const auto consistent = [&](int64_t b, int64_t v, int64_t rows, int64_t cols) {
    return ReadNmLayout(p.structure.data(), b, v, rows, cols).consistent;
  };
  EXPECT_TRUE(consistent(bytes, count, 40, 200));
  EXPECT_FALSE(consistent(bytes - 64, count, 40, 200));
  EXPECT_FALSE(consistent(bytes, count - 16, 40, 200));
  EXPECT_FALSE(consistent(bytes, count, 41, 200));  // the same panels, but not these rows
  EXPECT_FALSE(consistent(bytes, count, 40, 199));
  // Each field of the header, one bit changed.
  for (const int byte : {0, 4, 8, 16, 24, 28, 32}) {
    p.structure[static_cast<size_t>(byte)] ^= 1;
    EXPECT_FALSE(consistent(bytes, count, 40, 200)) << byte;
    p.structure[static_cast<size_t>(byte)] ^= 1;
  }
  p.structure[28] = 0;  // m: nothing may be divided by it
  EXPECT_FALSE(consistent(bytes, count, 40, 200));
}

TEST(CudaNmPlan, InfersThePatternFromSizes) {
  for (const Pattern pattern : kPatterns) {
    for (const int64_t cols : {1, 4, 7, 16, 33, 64, 129, 1000}) {
      const Packed p = Pack(17, cols, pattern, DType::kF32);
      const LinearProblem problem{1,
                                  17,
                                  cols,
                                  static_cast<int64_t>(p.values.size()),
                                  static_cast<int64_t>(p.structure.size()),
                                  DType::kF32,
                                  DType::kF32};
      int window = -1, steps_per_window = -1;
      ASSERT_TRUE(InferNmPattern(problem, &window, &steps_per_window));
      if (window == 0) {
        EXPECT_LE(p.layout.steps, 8);  // several patterns: only tiny matrices
      } else {
        EXPECT_EQ(window, p.layout.window);
        EXPECT_EQ(steps_per_window, p.layout.steps_per_window);
      }
      LinearProblem wrong = problem;
      wrong.structure_bytes += 32;
      EXPECT_FALSE(InferNmPattern(wrong, &window, &steps_per_window));
    }
  }
}

TEST(CudaNmPlan, ChoosesByRowsPatternDtypeAndDevice) {
  constexpr DeviceLimits kHopper = {132, 232448}, kAda = {128, 101376};
  const auto kernel = [&](int64_t x_rows, Pattern pattern, DType x, DType values) {
    return PlanNmLinear(ProblemOf(x_rows, 8192, 8192, pattern, x, values), kHopper).kernel;
  };
  for (const Pattern pattern : kPatterns) {
    for (const int64_t x_rows : {1, 2, 5, 16}) {
      EXPECT_EQ(kernel(x_rows, pattern, DType::kF32, DType::kI8), NmKernel::kDecode);
    }
    const bool sparse = pattern.n * 2 == pattern.m && pattern.m <= 4;
    EXPECT_EQ(kernel(17, pattern, DType::kBF16, DType::kBF16),
              sparse ? NmKernel::kSparseMma : NmKernel::kDenseMma);
    EXPECT_EQ(kernel(4096, pattern, DType::kF16, DType::kF16),
              sparse ? NmKernel::kSparseMma : NmKernel::kDenseMma);
    EXPECT_EQ(kernel(17, pattern, DType::kF16, DType::kI8), NmKernel::kDenseMma);
    // Rounding values to the dtype of x would lose what fp32 holds.
    EXPECT_EQ(kernel(17, pattern, DType::kBF16, DType::kF32), NmKernel::kFma);
    EXPECT_EQ(kernel(17, pattern, DType::kBF16, DType::kF16), NmKernel::kFma);
    EXPECT_EQ(kernel(17, pattern, DType::kF32, DType::kBF16), NmKernel::kFma);
  }
  const auto tile = [](int64_t x_rows, int64_t rows, DeviceLimits device) {
    return PlanNmLinear(ProblemOf(x_rows, rows, 4096, {2, 4}, DType::kBF16, DType::kBF16), device)
        .features;
  };
  EXPECT_EQ(tile(4096, 4096, kHopper), 256);
  EXPECT_EQ(tile(4096, 4096, kAda), 128);    // the large tile's stages do not fit
  EXPECT_EQ(tile(256, 4096, kHopper), 128);  // too few large tiles for the device
  EXPECT_LE(SparseSharedBytes(128, 64, kSparseStages), 99 * 1024);
  EXPECT_LE(SparseSharedBytes(256, 128, kSparseStages), 163 * 1024);
}

TEST(CudaNmPlan, DecodeFillsTheDeviceAndBoundsItsParts) {
  for (const int64_t rows : {1, 300, 8192, 200000}) {
    for (const int64_t cols : {16, 700, 8192, 28672, 1 << 20}) {
      for (const int64_t x_rows : {0, 1, 2, 3, 7, 16}) {
        const NmPlan plan = PlanNmLinear(
            ProblemOf(x_rows, rows, cols, {2, 4}, DType::kF32, DType::kBF16), {132, 232448});
        if (plan.window == 0) continue;
        ASSERT_EQ(plan.kernel, NmKernel::kDecode);
        EXPECT_GE(plan.parts, 1);
        EXPECT_LE(plan.parts, kNmMaxParts);
        EXPECT_LE(plan.parts, DivideUp(cols, kDecodeSplitCols));
        EXPECT_LE(plan.rows_of_x, kNmDecodeRowsAtOnce);
      }
    }
  }
  EXPECT_EQ(
      PlanNmLinear(ProblemOf(1, 8192, 28672, {2, 4}, DType::kBF16, DType::kBF16), {132, 232448})
          .parts,
      9);
}

TEST(CudaNmIndex, ReciprocalDividesExactly) {
  for (const int window : {4, 16, 32}) {
    for (int per_window = 1; per_window < window; ++per_window) {
      const uint32_t reciprocal = NmReciprocal(per_window);
      const uint64_t steps = static_cast<uint64_t>(kDecodeFloats / window * per_window);
      ASSERT_LT(steps * reciprocal, uint64_t{1} << 32);
      for (int j = 0; j < static_cast<int>(steps); ++j) {
        ASSERT_EQ(NmWindowOf(j, reciprocal), j / per_window) << per_window;
      }
    }
  }
}

TEST(CudaNmIndex, TilesAreEachTakenOnce) {
  for (const int64_t features : {1, 7, 8, 9, 33}) {
    for (const int64_t tokens : {1, 2, 13}) {
      std::set<std::pair<int64_t, int64_t>> seen;
      for (int64_t b = 0; b < features * tokens; ++b) {
        const ResultTile t = TileOfBlock(b, features, tokens);
        EXPECT_TRUE(t.feature >= 0 && t.feature < features && t.token >= 0 && t.token < tokens);
        seen.insert({t.feature, t.token});
      }
      EXPECT_EQ(static_cast<int64_t>(seen.size()), features * tokens);
    }
  }
}

TEST(CudaNmIndex, AnyBitsNameAColumnOfTheWindow) {
  for (const int window : {4, 16, 32}) {
    for (const uint32_t word : {0xffffffffu, 0xdeadbeefu, 0x80000001u}) {
      for (int i = 0; i < 32 / NmFieldBits(window); ++i) {
        EXPECT_LT(NmColumn(word, i, window), window);
        EXPECT_GE(NmColumn(word, i, window), 0);
      }
    }
  }
}

TEST(CudaNmIndex, DecodeLooksUpXWithoutBankConflicts) {
  // At 2:4 the threads of a warp, at one step of their runs, meet windows of together 32 columns.
  for (const int bytes : {2, 4}) {
    std::set<int> steps, banks;
    for (int lane = 0; lane < 32; ++lane) steps.insert(DecodeFirstStep(lane, bytes));
    std::set<int> windows;
    for (const int step : steps) windows.insert(step / 2);
    EXPECT_LE(windows.size() * 4, 32u);
    for (const int window : windows) {
      for (int i = 0; i < 4; ++i) EXPECT_TRUE(banks.insert((window * 4 + i) % 32).second);
    }
  }
}

// --- shared memory ------------------------------------------------------------------------------

TEST(CudaNmTiles, OffsetsAreAPermutationWithoutBankConflicts) {
  std::set<int> values, rows, words;
  for (int panel = 0; panel < 3; ++panel) {
    for (int step = 0; step < kTileSteps; ++step) {
      for (int half = 0; half < 2; ++half) values.insert(ValueOffset(panel, step, half));
    }
  }
  EXPECT_EQ(values.size(), size_t{3 * kTileSteps * 2});
  EXPECT_EQ(*values.rbegin(), 3 * kPanelTileBytes - 16);
  for (int row = 0; row < 24; ++row) {
    for (int chunk = 0; chunk < 8; ++chunk) rows.insert(RowOffset(row, chunk));
  }
  EXPECT_EQ(rows.size(), size_t{24 * 8});
  EXPECT_EQ(*rows.rbegin(), 24 * 128 - 16);
  for (int panel = 0; panel < 8; ++panel) {
    for (int word = 0; word < 2; ++word) {
      for (int lane = 0; lane < 16; ++lane) words.insert(WordOffset(8, panel, word, lane));
    }
  }
  EXPECT_EQ(words.size(), size_t{8 * 2 * 16});
  EXPECT_EQ(*words.rbegin(), 8 * 2 * 16 * 4 - 4);

  for (int part = 0; part < 2; ++part) {
    ExpectNoConflict([part](int lane) {
      const ValueAddress at = SparseAOfLane(lane);
      return ValueOffset(1, part * 16 + at.step, at.half);
    });
    ExpectNoConflict([part](int lane) {
      const RowAddress at = SparseBOfLane(lane);
      return RowOffset(8 + at.row, part * 4 + at.chunk);
    });
  }
  for (int q = 0; q < 4; ++q) {
    ExpectNoConflict([q](int lane) {
      const RowAddress at = DenseAOfLane(lane);
      return RowOffset(16 + at.row, q * 2 + at.chunk);
    });
    ExpectNoConflict([q](int lane) {
      const RowAddress at = DenseBOfLane(lane);
      return RowOffset(16 + at.row, q * 2 + at.chunk);
    });
  }
  // A result's 32 floats, one register of a warp, in 32 banks.
  for (const int features : {128, 256}) {
    std::set<int> banks;
    for (int lane = 0; lane < 32; ++lane) {
      banks.insert((ResultToken(lane, 0) * ResultStride(features) + ResultFeature(lane, 0)) % 32);
    }
    EXPECT_EQ(banks.size(), 32u);
  }
}

// --- the instruction, as the PTX ISA defines it ------------------------------------------------

// mma.sp::ordered_metadata.m16n8k32 with 16-bit elements, d[lane][4].
void MmaSparse(float (&d)[32][4], const Warp& a, const Warp& b, const uint32_t (&metadata)[32],
               int selector) {
  float dense_a[16][32], dense_b[32][8];
  ExpandA(a, metadata, selector, dense_a);
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      for (int h = 0; h < 2; ++h) {
        dense_b[2 * (lane % 4) + h + 8 * r][lane / 4] = F32FromBF16(b.r[lane][r].half[h]);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 32; ++k) {
        d[lane][i] += dense_a[lane / 4 + 8 * (i >> 1)][k] * dense_b[k][2 * (lane % 4) + (i & 1)];
      }
    }
  }
}

// --- the kernels' walks
// ---------------------------------------------------------------------------

using Shape = std::tuple<int64_t, int64_t, int64_t>;  // x_rows, rows, cols

class CudaNmSparse : public ::testing::TestWithParam<std::tuple<Shape, int, int>> {};

// SparseMmaKernel with one of its tiles.
template <int Features, int Tokens>
void CheckSparseMma(const Packed& p, int64_t x_rows) {
  using Block = Stages<Features, Tokens, Features>;
  constexpr int kPanels = Features / kNmPanelRows;
  const std::vector<float> x = SmallIntegers(x_rows * p.cols, 7);
  std::vector<float> y(static_cast<size_t>(x_rows * p.rows), -1.0f);
  const int64_t feature_tiles = DivideUp(p.rows, Features), token_tiles = DivideUp(x_rows, Tokens);
  for (int64_t block = 0; block < feature_tiles * token_tiles; ++block) {
    const ResultTile at = TileOfBlock(block, feature_tiles, token_tiles);
    std::vector<float> result(size_t{Features} * Tokens, 0.0f);
    Block stages(p, x, x_rows, at, 1);
    for (int64_t k = 0; k < DivideUp(p.cols, kTileCols); ++k) {
      stages.Fill(0);
      for (int half = 0; half < 2; ++half) {
        for (int pair = 0; pair < kPanels; pair += 2) {
          uint32_t metadata[32];
          stages.LoadMetadata(
              0, [&](int lane) { return std::pair(pair + MetadataSelector(lane), half); },
              metadata);
          for (int selector = 0; selector < 2; ++selector) {
            const int panel = pair + selector;
            const Warp a = stages.LoadA(0, panel, half);
            for (int token = 0; token < Tokens; token += 8) {
              const Warp b = LoadMatrices(
                  stages.shared,
                  [&](int lane) {
                    const RowAddress r = SparseBOfLane(lane);
                    return Block::Copies::kXAt + RowOffset(token + r.row, half * 4 + r.chunk);
                  },
                  false);
              float d[32][4] = {};
              MmaSparse(d, a, b, metadata, selector);
              for (int lane = 0; lane < 32; ++lane) {
                for (int i = 0; i < 4; ++i) {
                  const int n = panel * kNmPanelRows + ResultFeature(lane, i);
                  result[static_cast<size_t>((token + ResultToken(lane, i)) * Features + n)] +=
                      d[lane][i];
                }
              }
            }
          }
        }
      }
    }
    StoreTile(result, {Features, Tokens}, at, x_rows, p.rows, &y);
  }
  EXPECT_EQ(y, Expected(p, x, x_rows));
}

TEST_P(CudaNmSparse, FragmentsMultiplyToTheProduct) {
  const auto [shape, m, tile] = GetParam();
  const auto [x_rows, rows, cols] = shape;
  const Packed p = Pack(rows, cols, {m / 2, m}, DType::kBF16);
  ASSERT_EQ(p.layout.window, 4);
  ASSERT_EQ(p.layout.steps_per_window, 2);
  WithSparseTile(tile, [&, x_rows = x_rows]<int Features, int Tokens>() {
    CheckSparseMma<Features, Tokens>(p, x_rows);
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaNmSparse,
    ::testing::Combine(::testing::Values(Shape{64, 128, 64}, Shape{17, 40, 130}, Shape{70, 150, 37},
                                         Shape{5, 17, 201}),
                       ::testing::Values(2, 4), ::testing::Values(0, 1)));

class CudaNmPattern : public ::testing::TestWithParam<Pattern> {};

// DenseMmaKernel: expansion, fragments; one block of threads at a time.
TEST_P(CudaNmPattern, ExpandedTilesMultiplyToTheProduct) {
  constexpr int kTile = kDenseTile.features;
  for (const auto& [x_rows, rows, cols] : {Shape{20, 40, 150}, Shape{130, 16, 33}}) {
    const Packed p = Pack(rows, cols, GetParam(), DType::kBF16);
    const NmLayout& s = p.layout;
    const std::vector<float> x = SmallIntegers(x_rows * cols, 3);
    std::vector<float> y(static_cast<size_t>(x_rows * rows), 0.0f);
    const int tile_steps = kTileCols / s.window * s.steps_per_window;
    const int fields = 32 / s.field_bits;
    for (int64_t first_row = 0; first_row < x_rows; first_row += kTile) {
      for (int64_t k = 0; k < DivideUp(cols, kTileCols); ++k) {
        std::vector<uint8_t> shared(2 * kTile * kTileCols * 2, 0);
        const int x_at = kTile * kTileCols * 2;
        for (int panel = 0; panel < kTile / kNmPanelRows && panel < s.panels; ++panel) {
          const int64_t begin = k * tile_steps;
          const auto count = static_cast<int>(std::min<int64_t>(s.steps - begin, tile_steps));
          const int offset = static_cast<int>(begin & (fields - 1));
          for (int j = 0; j < count; ++j) {
            for (int lane = 0; lane < kNmPanelRows; ++lane) {
              const uint32_t word = WordAt(p, panel, begin / fields + (offset + j) / fields, lane);
              const int column = NmWindowOf(j, NmReciprocal(s.steps_per_window)) * s.window +
                                 NmColumn(word, (offset + j) & (fields - 1), s.window);
              ASSERT_LT(column, kTileCols);
              const auto from =
                  static_cast<size_t>(((panel * s.steps + begin + j) * kNmPanelRows + lane) * 2);
              std::memcpy(shared.data() + RowOffset(panel * kNmPanelRows + lane, column / 8) +
                              column % 8 * 2,
                          p.values.bytes.data() + from, 2);
            }
          }
        }
        FillX(x, x_rows, cols, first_row, k * kTileCols, kTile, x_at, &shared);
        for (int q = 0; q < kTileCols / 16; ++q) {
          for (int feature = 0; feature < kTile && feature < rows; feature += 16) {
            const Warp a = LoadMatrices(
                shared,
                [&](int lane) {
                  const RowAddress r = DenseAOfLane(lane);
                  return RowOffset(feature + r.row, q * 2 + r.chunk);
                },
                false);
            for (int token = 0; token < kTile; token += 16) {
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
                    const int64_t m = first_row + token + 8 * j + ResultToken(lane, i);
                    const int64_t n = feature + ResultFeature(lane, i);
                    if (m < x_rows && n < rows) y[static_cast<size_t>(m * rows + n)] += d[lane][i];
                  }
                }
              }
            }
          }
        }
      }
    }
    EXPECT_EQ(y, Expected(p, x, x_rows));
  }
}

// DecodeKernel: every thread's walk, for each size of a value, several splits of the columns.
TEST_P(CudaNmPattern, DecodeWalksEachKeptWeightOnce) {
  constexpr int64_t kRows = 35, kCols = 1300;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    const Packed p = Pack(kRows, kCols, GetParam(), dtype);
    const NmLayout& s = p.layout;
    const std::vector<float> x = SmallIntegers(kCols, 5);
    const auto bytes = static_cast<int>(SizeOf(dtype));
    const int rows = DecodeRows(bytes), fields = 32 / s.field_bits;
    for (const int parts : {1, 2, 3}) {
      for (const int chunk : {kDecodeFloats, kDecodeFloats / 8}) {
        std::vector<float> y(kRows, 0.0f);
        for (int part = 0; part < parts; ++part) {
          const NmColumns columns = DecodePart(kCols, part, parts);
          for (int64_t first = columns.begin; first < columns.end; first += chunk) {
            const int64_t width = std::min<int64_t>(columns.end - first, chunk);
            const int64_t begin = first / s.window * s.steps_per_window;
            const int64_t end = (first + width) / s.window * s.steps_per_window;
            ASSERT_EQ(begin * s.field_bits % 32, 0) << "a part begins with a word";
            const auto count = static_cast<int>(std::min(end, s.steps) - begin);
            for (int64_t panel = 0; panel < s.panels; ++panel) {
              for (int lane = 0; lane < 32; ++lane) {
                const int row = DecodeFirstRow(lane, bytes);
                ASSERT_LE(row + rows, kNmPanelRows);
                for (int j = DecodeFirstStep(lane, bytes); j < count; j += DecodeStride(bytes)) {
                  for (int u = 0; u < DecodeRun(bytes) && j + u < count; ++u) {
                    ASSERT_EQ(j / fields, (j + u) / fields) << "a run shares its words";
                    for (int r = 0; r < rows; ++r) {
                      const uint32_t word = WordAt(p, panel, begin / fields + j / fields, row + r);
                      const int column =
                          NmWindowOf(j + u, NmReciprocal(s.steps_per_window)) * s.window +
                          NmColumn(word, (j + u) & (fields - 1), s.window);
                      ASSERT_LT(column, width);
                      const int64_t k = first + column;
                      const auto at = static_cast<size_t>(
                          (panel * s.steps + begin + j + u) * kNmPanelRows + row + r);
                      const int64_t n = panel * kNmPanelRows + row + r;
                      const float in = k < kCols ? x[static_cast<size_t>(k)] : 0.0f;
                      if (n < kRows) {
                        y[static_cast<size_t>(n)] += static_cast<float>(p.values[at]) * in;
                      }
                    }
                  }
                }
              }
            }
          }
        }
        EXPECT_EQ(y, Expected(p, x, 1)) << Name(dtype) << ", " << parts << " parts";
      }
    }
  }
}

// FmaKernel's expansion of tiles of 32 columns rebuilds the matrix.
TEST_P(CudaNmPattern, TilesOf32ColumnsRebuildTheMatrix) {
  const Packed p = Pack(40, 150, GetParam(), DType::kF32);
  const NmLayout& s = p.layout;
  const int tile_steps = 32 / s.window * s.steps_per_window, fields = 32 / s.field_bits;
  std::vector<float> dense(p.dense.size(), 0.0f);
  for (int64_t panel = 0; panel < s.panels; ++panel) {
    for (int64_t k = 0; k < DivideUp(p.cols, 32); ++k) {
      for (int j = 0; j < tile_steps && k * tile_steps + j < s.steps; ++j) {
        const int64_t step = k * tile_steps + j;
        for (int row = 0; row < kNmPanelRows; ++row) {
          const uint32_t word = WordAt(p, panel, step / fields, row);
          const int column = NmWindowOf(j, NmReciprocal(s.steps_per_window)) * s.window +
                             NmColumn(word, static_cast<int>(step % fields), s.window);
          ASSERT_LT(column, 32);
          const int64_t n = panel * kNmPanelRows + row, c = k * 32 + column;
          if (n >= p.rows || c >= p.cols) continue;
          const auto at = static_cast<size_t>((panel * s.steps + step) * kNmPanelRows + row);
          dense[static_cast<size_t>(n * p.cols + c)] += static_cast<float>(p.values[at]);
        }
      }
    }
  }
  EXPECT_EQ(dense, p.dense);
}

INSTANTIATE_TEST_SUITE_P(Patterns, CudaNmPattern, ::testing::ValuesIn(kPatterns));

TEST(CudaNmMetadata, ZerosBecomeColumnsZeroAndOne) {
  EXPECT_EQ(OrderedMetadata(0), 0x44444444u);
  EXPECT_EQ(OrderedMetadata(0x0e0400c9u), 0x4e4444c9u);
  for (const uint32_t whole : {0x44444444u, 0xeeeeeeeeu, 0x489cde4eu}) {
    EXPECT_EQ(OrderedMetadata(whole), whole);
  }
}

}  // namespace
}  // namespace sparsekern::cuda
