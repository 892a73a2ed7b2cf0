// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of gqs_linear without a GPU: their threads' walks over packed matrices, with the
// kernels' own index and bit arithmetic.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <set>
#include <tuple>
#include <vector>

#include "gqs_case.h"
#include "ops/gqs_linear/cuda_index.h"
#include "ops/gqs_linear/cuda_plan.h"

namespace sparsekern::cuda {
namespace {

using testing::GqsCase;
using testing::GqsKind;
using testing::MakeGqsCase;
using testing::Random;

constexpr GqsKind kKinds[] = {{2, 16, GqsScale::kF16},  {2, 64, GqsScale::kF32, true},
                              {4, 16, GqsScale::kU8},   {4, 32, GqsScale::kBF16, true},
                              {4, 128, GqsScale::kF16}, {8, 16, GqsScale::kF32},
                              {8, 128, GqsScale::kU8}};

struct Shape {
  int64_t rows, cols;
};
// Rows that span tasks (3 x 30000), tasks of many rows, ragged rows and last groups.
constexpr Shape kShapes[] = {{1, 1}, {3, 17}, {3, 30000}, {70, 1000}, {300, 129}, {20, 4096}};

GqsSizes SizesOf(const GqsCase& c) {
  return {c.rows,
          c.cols,
          static_cast<int64_t>(c.values.size()),
          static_cast<int64_t>(c.structure.size()),
          static_cast<int64_t>(c.scale.size() / SizeOf(c.kind.scale)),
          c.kind.scale};
}

float ScaleOf(const GqsCase& c, int64_t i) {
  EXPECT_LE(static_cast<size_t>(i + 1) * SizeOf(c.kind.scale), c.scale.size());
  const uint8_t* p = c.scale.data() + static_cast<size_t>(i) * SizeOf(c.kind.scale);
  uint16_t half;
  std::memcpy(&half, p, c.kind.scale == GqsScale::kU8 ? 1 : 2);
  float whole;
  switch (c.kind.scale) {
    case GqsScale::kF32: std::memcpy(&whole, p, 4); return whole;
    case GqsScale::kBF16: return F32FromBF16(half);
    case GqsScale::kF16: return F32FromF16(half);
    case GqsScale::kU8: return *p;
  }
  return 0;
}

uint32_t WordOf(const GqsCase& c, int64_t word) {
  EXPECT_LE(static_cast<size_t>(word) * 4 + 4, c.values.size());
  uint32_t v;
  std::memcpy(&v, c.values.data() + word * 4, 4);
  return v;
}

float CodeOf(int bits, uint32_t word, int field) {
  return bits == 2   ? GqsCode<2>(word, field)
         : bits == 4 ? GqsCode<4>(word, field)
                     : GqsCode<8>(word, field);
}

// --- bits, layout, plan -------------------------------------------------------------------------

TEST(CudaGqsCode, IsTheFieldForEveryPlaceAndValue) {
  for (const int bits : {2, 4, 8}) {
    for (int field = 0; field < 32 / bits; ++field) {
      for (int code = -(1 << (bits - 1)); code < 1 << (bits - 1); ++code) {
        const uint32_t ones = (1u << bits) - 1;
        for (const uint32_t others : {0u, ~0u, 0x5a5a5a5au}) {
          const uint32_t word = (others & ~(ones << (field * bits))) |
                                (static_cast<uint32_t>(code) & ones) << (field * bits);
          EXPECT_EQ(CodeOf(bits, word, field), static_cast<float>(code)) << bits << " " << field;
          EXPECT_EQ(GqsCodeOf(word, bits, field), static_cast<float>(code));
        }
      }
    }
  }
}

TEST(CudaGqsLayout, AgreesWithTheParser) {
  for (const GqsKind& kind : kKinds) {
    for (const auto& [rows, cols] : kShapes) {
      const GqsCase c = MakeGqsCase(rows, cols, kind);
      const GqsStructure s = c.Matrix().structure;
      const GqsLayout l = ReadGqsLayout(c.structure.data(), SizesOf(c));
      ASSERT_TRUE(l.consistent) << testing::Text(kind);
      EXPECT_TRUE(GqsPossible(SizesOf(c)));
      EXPECT_EQ(l.groups, s.groups);
      EXPECT_EQ(l.row_groups, s.row_groups);
      EXPECT_EQ(l.mask_bytes, 2 * s.words);
      EXPECT_EQ(l.tasks, s.tasks);
      EXPECT_EQ(l.task_groups, s.task_groups);
      EXPECT_EQ(16 << l.unit_shift, s.group);
      EXPECT_EQ(1 << l.block_shift, s.units_per_block());
      EXPECT_EQ(c.structure.data() + l.task_row, s.task_row_bytes);
      EXPECT_EQ(c.structure.data() + l.mask, s.mask);
      if (s.row_scale) {
        EXPECT_EQ(c.structure.data() + l.factors, s.row_scale_bytes);
      }
      for (int64_t r = 0; r <= rows; ++r) {
        EXPECT_EQ(GqsRowStart(l, c.structure.data(), r), s.row_ptr(r));
      }
      for (int64_t t = 0; t < s.tasks; ++t) {
        EXPECT_EQ(GqsTaskRow(l, c.structure.data(), t), s.task_row(t));
      }
    }
  }
}

TEST(CudaGqsLayout, RefusesWhatDoesNotFit) {
  GqsCase c = MakeGqsCase(40, 200, {4, 16, GqsScale::kF16, true});
  const GqsSizes good = SizesOf(c);
  const auto consistent = [&c](const GqsSizes& sizes) {
    return ReadGqsLayout(c.structure.data(), sizes).consistent;
  };
  EXPECT_TRUE(consistent(good));
  for (int64_t GqsSizes::* size : {&GqsSizes::rows, &GqsSizes::cols, &GqsSizes::value_bytes,
                                   &GqsSizes::structure_bytes, &GqsSizes::scale_count}) {
    for (const int by : {-64, -1, 1, 64}) {
      GqsSizes wrong = good;
      wrong.*size += by;
      EXPECT_FALSE(consistent(wrong)) << by;
    }
  }
  GqsSizes wrong = good;
  wrong.kind = GqsScale::kU8;
  EXPECT_FALSE(consistent(wrong));
  // Magic, version, rows, columns, group, bits, groups, flags: one bit changed.
  for (const int byte : {0, 4, 8, 16, 24, 28, 32, 36, 44}) {
    for (const int bit : {0, 1, 7}) {
      c.structure[static_cast<size_t>(byte)] ^= static_cast<uint8_t>(1 << bit);
      EXPECT_FALSE(consistent(good)) << byte << " " << bit;
      c.structure[static_cast<size_t>(byte)] ^= static_cast<uint8_t>(1 << bit);
    }
  }
  // Tasks of no groups, and of more than a table holds.
  for (const uint32_t task : {0u, 2049u, ~0u}) {
    std::memcpy(c.structure.data() + 40, &task, 4);
    EXPECT_FALSE(consistent(good)) << task;
  }
}

TEST(CudaGqsPlan, KnowsSizesThatNoMatrixHas) {
  for (const GqsKind& kind : kKinds) {
    const GqsCase c = MakeGqsCase(40, 4096, kind);
    const GqsSizes good = SizesOf(c);
    EXPECT_TRUE(GqsPossible(good));
    for (int64_t GqsSizes::* size : {&GqsSizes::rows, &GqsSizes::value_bytes,
                                     &GqsSizes::structure_bytes, &GqsSizes::scale_count}) {
      for (const int by : {-1, 1, 1 << 20}) {
        GqsSizes wrong = good;
        wrong.*size += by;
        if (size == &GqsSizes::rows && (by == 1 || by == -1)) continue;  // may fit another group
        if (size == &GqsSizes::scale_count && (by == 1 || by == -1)) {
          // Within a block of values a group more or less is not seen; three times as many are.
          wrong.scale_count = 3 * good.scale_count;
        }
        EXPECT_FALSE(GqsPossible(wrong)) << testing::Text(kind) << " " << by;
      }
    }
  }
}

TEST(CudaGqsPlan, TakesTheKernelForTheRowsOfX) {
  const DeviceLimits h100{132, 232448}, small{84, 101376};
  const auto plan = [](int64_t x_rows, int64_t rows, int64_t cols, DType x, DeviceLimits device) {
    const GqsSizes sizes{rows, cols, rows * cols / 4, 64, rows * cols / 32, GqsScale::kF16};
    return PlanGqsLinear(sizes, x_rows, x, device);
  };
  const struct {
    int64_t x_rows;
    int rows_of_x, slots;
  } decode[] = {{1, 1, 2}, {2, 2, 2}, {3, 4, 4}, {4, 4, 4}, {5, 4, 4}, {16, 4, 4}};
  for (const auto& [x_rows, rows_of_x, slots] : decode) {
    const GqsPlan p = plan(x_rows, 4096, 4096, DType::kBF16, h100);
    EXPECT_EQ(p.kernel, GqsKernel::kDecode);
    EXPECT_EQ(p.rows_of_x, rows_of_x) << x_rows;
    EXPECT_EQ(p.slots, slots) << x_rows;
    EXPECT_EQ(p.blocks, 264);
  }
  // Wide: fewer rows of x at a time, then one copy, then tiles.
  EXPECT_EQ(plan(16, 4096, 9000, DType::kF16, h100).rows_of_x, 4);
  EXPECT_EQ(plan(16, 4096, 20000, DType::kF16, h100).rows_of_x, 2);
  EXPECT_EQ(plan(16, 4096, 28672, DType::kF16, h100).rows_of_x, 1);
  EXPECT_EQ(plan(1, 4096, 28672, DType::kF16, h100).slots, 1);
  EXPECT_EQ(plan(1, 4096, 28672, DType::kF16, h100).blocks, 132);
  EXPECT_EQ(plan(1, 4096, 60000, DType::kF16, h100).kernel, GqsKernel::kDenseMma);
  EXPECT_EQ(plan(1, 4096, 60000, DType::kF32, h100).kernel, GqsKernel::kFma);
  EXPECT_EQ(plan(1, 4096, 4096, DType::kF16, small).slots, 1);
  // Many rows of x.
  EXPECT_EQ(plan(33, 4096, 4096, DType::kF16, h100).kernel, GqsKernel::kDenseMma);
  EXPECT_EQ(plan(32, 4096, 4096, DType::kF16, h100).kernel, GqsKernel::kDecode);
  EXPECT_EQ(plan(64, 1024, 4096, DType::kF16, h100).kernel, GqsKernel::kDecode);
  EXPECT_EQ(plan(65, 1024, 4096, DType::kF16, h100).kernel, GqsKernel::kDenseMma);
  EXPECT_EQ(plan(2000, 4096, 4096, DType::kF32, h100).kernel, GqsKernel::kFma);
  for (int64_t cols = 1; cols < 70000; cols += 97) {
    for (int64_t x_rows = 1; x_rows <= 17; ++x_rows) {
      const GqsPlan p = plan(x_rows, 3, cols, DType::kF32, small);
      EXPECT_LE(p.shared_bytes + kGqsDecodeBytes, small.shared_bytes);
      EXPECT_TRUE(p.kernel == GqsKernel::kFma || p.blocks >= 1);
    }
  }
}

// --- tasks, strands, entries --------------------------------------------------------------------

TEST(CudaGqsTasks, BlocksOfThreadsTakeEachOnceInOrder) {
  for (const int64_t tasks : {0, 1, 2, 7, 131, 132, 133, 1000}) {
    for (const int blocks : {1, 2, 5, 132, 264}) {
      int64_t next = 0;
      for (int b = 0; b < blocks; ++b) {
        const GqsRange range = GqsTasksOf(tasks, b, blocks);
        EXPECT_EQ(range.begin, next);
        EXPECT_LE(range.begin, range.end);
        next = range.end;
      }
      EXPECT_EQ(next, tasks);
      for (int64_t task = 1; task <= tasks + 1; ++task) {
        int expected = 0;
        while (expected < blocks && GqsTasksOf(tasks, expected, blocks).begin < task) ++expected;
        EXPECT_EQ(GqsFirstBlock(tasks, blocks, task), expected) << tasks << " " << blocks;
      }
    }
  }
}

TEST(CudaGqsTasks, QuadsTakeEachBlockOnceInOrder) {
  for (int blocks = 1; blocks <= 520; ++blocks) {
    int64_t next = 0;
    for (int quad = 0; quad < kGqsQuads; ++quad) {
      const GqsRange range = GqsStrand(blocks, quad);
      EXPECT_EQ(range.begin, next);
      EXPECT_LE(range.begin, range.end);
      next = range.end;
    }
    EXPECT_EQ(next, blocks);
  }
}

TEST(CudaGqsEntries, LieApartAndWithoutConflicts) {
  std::set<int> seen;
  for (int unit = 0; unit < kGqsMostUnits; ++unit) {
    EXPECT_TRUE(seen.insert(GqsEntryAt(unit)).second);
    EXPECT_LT(GqsEntryAt(unit), kGqsEntries);
  }
  for (const int block : {4, 8, 16}) {
    for (int first = 0; first < kGqsMostUnits; first += block) {
      for (int j = 0; j < block; ++j) {
        EXPECT_EQ(GqsEntryAt(first + j), GqsEntryAt(first) + GqsEntryAt(j));
      }
    }
  }
  // Four quads that are served at a time, of whole tasks: eight bytes each, in other banks.
  for (const int apart : {8, 16, 32}) {
    for (int within = 0; within < apart; ++within) {
      for (const int first : {0, 4}) {
        std::set<int> banks;
        for (int quad = first; quad < first + 4; ++quad) {
          for (int word = 0; word < 2; ++word) {
            banks.insert((2 * GqsEntryAt(quad * apart + within) + word) % 32);
          }
        }
        EXPECT_EQ(banks.size(), 8u) << apart << " " << within;
      }
    }
  }
}

TEST(CudaGqsX, TwoQuadsNeverMeetInABank) {
  for (const auto& [rows_of_x, slots_of_x] : {std::tuple{1, 2}, {2, 2}, {4, 4}}) {
    const int slots = slots_of_x;  // lambdas of C++20 capture no binding in every compiler
    for (int i = 0; i < rows_of_x; ++i) {
      for (int quad = 0; quad < kGqsQuads; quad += 2) {
        for (int unit = 0; unit < 4; ++unit) {
          for (int other = 0; other < 4; ++other) {
            const auto half = [&](int q, int u) {
              return (GqsUnitAt(u, slots) + static_cast<uint32_t>(GqsSlot(i, q, slots))) % 32 / 16;
            };
            EXPECT_NE(half(quad, unit), half(quad + 1, other));
          }
        }
        if (rows_of_x > 1) {
          EXPECT_EQ(GqsSlot(i, quad, slots), GqsRowOfX(i, quad, rows_of_x) * kGqsUnit);
        }
      }
    }
  }
}

// --- decode -------------------------------------------------------------------------------------

// GqsDecodeKernel and GqsFinishKernel: y [x_rows][rows] without bias and activation.
class Decode {
 public:
  Decode(const GqsCase& c, const std::vector<float>& x, int64_t x_rows, int rows_of_x, int slots,
         int blocks)
      : c_(c),
        s_(ReadGqsLayout(c.structure.data(), SizesOf(c))),
        x_rows_(x_rows),
        rows_of_x_(rows_of_x),
        slots_(slots),
        sums_(static_cast<size_t>(x_rows * c.rows), kNever),
        carried_(static_cast<size_t>(blocks * x_rows), kNever),
        met_(static_cast<size_t>(c.rows * c.cols), 0) {
    EXPECT_TRUE(s_.consistent);
    for (int64_t first_x = 0; first_x < x_rows; first_x += rows_of_x) {
      FillX(x, first_x);
      for (int block = 0; block < blocks; ++block) Block(block, blocks, first_x);
    }
    y.assign(sums_.size(), 0.0f);
    for (int64_t m = 0; m < x_rows; ++m) {
      for (int64_t row = 0; row < c.rows; ++row) {
        const GqsSplit split = GqsSplitOf(s_, c.structure.data(), row, blocks);
        const auto at = static_cast<size_t>(m * c.rows + row);
        EXPECT_EQ(split.any, sums_[at] != kNever) << "a row has a sum, and one alone";
        float sum = split.any ? sums_[at] : 0.0f;
        for (int b = split.first; b < split.end; ++b) {
          EXPECT_NE(carried_[static_cast<size_t>(b * x_rows + m)], kNever);
          sum += carried_[static_cast<size_t>(b * x_rows + m)];
        }
        y[at] = c.row_scale.empty() ? sum : sum * c.row_scale[static_cast<size_t>(row)];
      }
    }
  }

  // How often each weight was multiplied with the first row of x.
  const std::vector<int>& met() const { return met_; }
  std::vector<float> y;

 private:
  static constexpr float kNever = -12345.678f;
  struct Warp {
    float lead[4] = {}, tail[4] = {};
    int tail_row = -1;
    bool begins = false;
  };
  struct Quad {
    float sum[4] = {}, head[4] = {};
    int row = 0;
    bool begins = false;
  };

  void FillX(const std::vector<float>& x, int64_t first_x) {
    const auto columns = static_cast<int>(GqsUnitsOfX(s_) + 1) * kGqsUnit;
    EXPECT_LE(columns * slots_ * 4, GqsBytesOfX(c_.cols, slots_)) << "what is asked for suffices";
    tile_.assign(static_cast<size_t>(columns * slots_), kNever);
    column_.assign(tile_.size(), -1);
    for (int m = 0; m < rows_of_x_; ++m) {
      const int64_t there = first_x + m < x_rows_ ? c_.cols : 0;
      for (int k = 0; k < columns; ++k) {
        const float v = k < there ? x[static_cast<size_t>((first_x + m) * c_.cols + k)] : 0.0f;
        for (int copy = 0; copy < (rows_of_x_ == 1 ? slots_ : 1); ++copy) {
          const auto at =
              static_cast<size_t>(GqsColumnAt(k, slots_) + (rows_of_x_ == 1 ? copy : m) * kGqsUnit);
          EXPECT_EQ(tile_[at], kNever);
          tile_[at] = v;
          column_[at] = k;
        }
      }
    }
  }

  void MakeTable(int64_t task, const GqsTask& t) {
    const uint8_t* structure = c_.structure.data();
    entry_.assign(kGqsEntries, GqsEntry{~0u, kNever});
    zero_.assign(kGqsEntries, kNever);
    row_.assign(kGqsEntries, -1);
    const uint32_t nothing = GqsUnitAt(GqsUnitsOfX(s_), slots_);
    for (int u = 0; u < t.blocks << s_.block_shift; ++u) {
      const bool ours = u >= t.begin && u < t.end;
      const int64_t group = ((t.first_block << s_.block_shift) + u) >> s_.unit_shift;
      entry_[static_cast<size_t>(GqsEntryAt(u))] = {nothing, ours ? ScaleOf(c_, group) : 0.0f};
      if (s_.zeros) {
        zero_[static_cast<size_t>(GqsEntryAt(u))] = ours ? ScaleOf(c_, s_.groups + group) : 0.0f;
      }
    }
    const int64_t first_row = GqsTaskRow(s_, structure, task);
    int64_t kept = GqsRowStart(s_, structure, first_row);
    int64_t left = (s_.rows - first_row) * s_.mask_bytes;
    std::vector<GqsMaskCursor> at;
    for (int thread = 0; thread < kGqsThreads; ++thread) {
      at.push_back(GqsFirstByte(s_, first_row, thread));
    }
    do {
      for (GqsMaskCursor& cursor : at) {
        if (cursor.row < s_.rows) {
          const uint32_t bits = GqsMaskByte(s_, structure, cursor.row, cursor.byte);
          GqsPutEntries(s_, t, cursor, bits, kept, GqsRowStart(s_, structure, cursor.row), slots_,
                        entry_.data(), row_.data());
          kept += std::popcount(bits);
        }
        cursor = GqsNextByte(s_, cursor);
      }
      left -= kGqsThreads;
    } while (kept < t.end_group && left > 0);
  }

  void Put(int64_t x_row, int64_t row, float sum) {
    if (x_row >= x_rows_) return;
    float& to = sums_[static_cast<size_t>(x_row * c_.rows + row)];
    EXPECT_EQ(to, kNever);
    to = sum;
  }

  // The walk of the four threads of a quad.
  Quad Walk(const GqsTask& t, int quad, int64_t first_x) {
    Quad q;
    const GqsRange range = GqsStrand(t.blocks, quad);
    for (int64_t b = range.begin; b < range.end; ++b) {
      for (int j = 0; j < 1 << s_.block_shift; ++j) {
        const int unit = static_cast<int>(b << s_.block_shift) + j;
        const auto e = static_cast<size_t>(GqsEntryAt(unit));
        EXPECT_NE(entry_[e].at, ~0u);
        if ((entry_[e].at & kGqsRowBegins) != 0) {
          for (int i = 0; i < rows_of_x_; ++i) {
            if (!q.begins) {
              q.head[i] = q.sum[i];
            } else {
              Put(first_x + GqsRowOfX(i, quad, rows_of_x_), q.row, q.sum[i]);
            }
            q.sum[i] = 0;
          }
          q.begins = true;
          q.row = current_row_ = row_[e];
        }
        for (int lane = 0; lane < 4; ++lane) {
          for (int column = 0; column < 4; ++column) {
            const uint32_t word = WordOf(c_, (t.first_block + b) * 16 + lane * 4 + column);
            const float code = CodeOf(s_.bits, word, j) - (s_.zeros ? zero_[e] : 0.0f);
            for (int i = 0; i < rows_of_x_; ++i) {
              const auto at = static_cast<size_t>(static_cast<int>(entry_[e].at & ~kGqsRowBegins) +
                                                  GqsSlot(i, quad, slots_) + lane * 4 + column);
              q.sum[i] += code * tile_[at] * entry_[e].scale;
              const int k = column_[at];
              if (i == 0 && first_x == 0 && unit >= t.begin && unit < t.end && k < c_.cols) {
                ++met_[static_cast<size_t>(current_row_ * c_.cols + k)];
              }
            }
          }
        }
      }
    }
    return q;
  }

  void Block(int block, int blocks, int64_t first_x) {
    const GqsRange tasks = GqsTasksOf(s_.tasks, block, blocks);
    GqsOpenRow open[4] = {{-1, 0.0f}, {-1, 0.0f}, {-1, 0.0f}, {-1, 0.0f}};
    const auto put = [&](int i) {
      return [this, i, block, first_x](int row, float sum) {
        if (row >= 0) {
          Put(first_x + i, row, sum);
        } else if (first_x + i < x_rows_) {
          float& to = carried_[static_cast<size_t>(block * x_rows_ + first_x + i)];
          EXPECT_EQ(to, kNever);
          to = sum;
        }
      };
    };
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const GqsTask t = GqsTaskOf(s_, task);
      EXPECT_LE(t.blocks << s_.block_shift, kGqsMostUnits);
      MakeTable(task, t);
      current_row_ = static_cast<int>(GqsTaskRow(s_, c_.structure.data(), task));
      for (int w = 0; w < kGqsWarps; ++w) {
        std::vector<Quad> quads;
        for (int q = 0; q < 8; ++q) quads.push_back(Walk(t, w * 8 + q, first_x));
        const Warp warp = Join(quads, first_x);
        for (int i = 0; i < rows_of_x_; ++i) {
          open[i].Meet(warp.lead[i], warp.begins, warp.tail[i], warp.tail_row, put(i));
        }
      }
    }
    for (int i = 0; i < rows_of_x_; ++i) open[i].Close(put(i));
  }

  // JoinQuads, with its shuffles.
  Warp Join(const std::vector<Quad>& quads, int64_t first_x) {
    Warp warp;
    float lead[8][4], sum[8][4];
    bool stop[8];
    for (int q = 0; q < 8; ++q) {
      for (int i = 0; i < rows_of_x_; ++i) {
        const int m = GqsRowOfX(i, q, rows_of_x_);
        lead[q][m] = quads[static_cast<size_t>(q)].begins ? quads[static_cast<size_t>(q)].head[i]
                                                          : quads[static_cast<size_t>(q)].sum[i];
        sum[q][m] = quads[static_cast<size_t>(q)].sum[i];
      }
      stop[q] = quads[static_cast<size_t>(q)].begins;
    }
    for (int step = 1; step < 8; step *= 2) {
      for (int q = 0; q + step < 8; ++q) {  // ascending: q + step is still as it was
        if (stop[q]) continue;
        for (int m = 0; m < rows_of_x_; ++m) lead[q][m] += lead[q + step][m];
        stop[q] = stop[q + step];
      }
    }
    for (int q = 0; q < 8; ++q) {
      const Quad& quad = quads[static_cast<size_t>(q)];
      if (!quad.begins) continue;
      warp.begins = true;
      bool later = false;
      for (int p = q + 1; p < 8; ++p) later |= quads[static_cast<size_t>(p)].begins;
      for (int m = 0; m < rows_of_x_; ++m) {
        const float total = sum[q][m] + (q < 7 ? lead[q + 1][m] : 0.0f);
        if (later) {
          Put(first_x + m, quad.row, total);
        } else {
          warp.tail[m] = total;
          warp.tail_row = quad.row;
        }
      }
    }
    for (int m = 0; m < rows_of_x_; ++m) warp.lead[m] = lead[0][m];
    return warp;
  }

  const GqsCase& c_;
  GqsLayout s_;
  int64_t x_rows_;
  int rows_of_x_, slots_;
  std::vector<float> sums_, carried_;
  std::vector<int> met_;
  std::vector<float> tile_, zero_;
  std::vector<int> column_, row_;
  std::vector<GqsEntry> entry_;
  int current_row_ = 0;
};

void CheckDecode(const GqsCase& c, int64_t x_rows, int rows_of_x, int slots, int blocks) {
  Random random(9);
  std::vector<float> x(static_cast<size_t>(x_rows * c.cols));
  for (float& v : x) v = random.Signed();
  const Decode decode(c, x, x_rows, rows_of_x, slots, blocks);
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t k = 0; k < c.cols; ++k) {
      const bool kept = c.mask[static_cast<size_t>(row * c.RowGroups() + k / c.kind.group)] != 0;
      ASSERT_EQ(decode.met()[static_cast<size_t>(row * c.cols + k)], kept ? 1 : 0)
          << testing::Text(c.kind) << " row " << row << " column " << k;
    }
    for (int64_t m = 0; m < x_rows; ++m) {
      double expected = 0, size = 0;
      for (int64_t k = 0; k < c.cols; ++k) {
        const double term = c.weight[static_cast<size_t>(row * c.cols + k)] *
                            static_cast<double>(x[static_cast<size_t>(m * c.cols + k)]);
        expected += term;
        size += std::abs(term);
      }
      const double got = static_cast<double>(decode.y[static_cast<size_t>(m * c.rows + row)]);
      ASSERT_NEAR(got, expected, 1e-6 * static_cast<double>(c.cols) * size)
          << testing::Text(c.kind) << " row " << row << " of x " << m;
    }
  }
}

class CudaGqs : public ::testing::TestWithParam<GqsKind> {};

TEST_P(CudaGqs, DecodeMultipliesEachKeptWeightOnce) {
  for (const auto& [rows, cols] : kShapes) {
    const GqsCase c = MakeGqsCase(rows, cols, GetParam());
    CheckDecode(c, 1, 1, 2, 3);
    if (cols <= 4096) CheckDecode(c, 1, 1, 1, 1);
    if (rows * cols > 50000) continue;
    CheckDecode(c, 2, 2, 2, 40);
    CheckDecode(c, 5, 4, 4, 2);
  }
}

// Tasks of any length: those of another writer.
TEST_P(CudaGqs, DecodeTakesTasksOfOtherWriters) {
  for (const uint32_t task : {1u, 3u, 13u}) {
    GqsCase c = MakeGqsCase(23, 700, GetParam(), 0.6);
    // The header's number, and the row of each task, in a structure of the new length.
    const GqsStructure s = c.Matrix().structure;
    const int64_t tasks = (s.groups + task - 1) / task;
    const GqsLayout before = ReadGqsLayout(c.structure.data(), SizesOf(c));
    const uint8_t* old = c.structure.data();
    std::vector<uint8_t> structure(old, old + before.task_row);
    structure.resize(static_cast<size_t>(before.task_row + GqsAligned(4 * tasks)), 0);
    std::memcpy(structure.data() + 40, &task, 4);
    uint32_t row = 0;
    for (int64_t t = 0; t < tasks; ++t) {
      while (s.row_ptr(row + 1) <= t * task) ++row;
      std::memcpy(structure.data() + before.task_row + 4 * t, &row, 4);
    }
    structure.insert(structure.end(), old + before.mask, old + c.structure.size());
    c.structure = structure;
    ASSERT_TRUE(c.Validate().ok()) << c.Validate().message();
    for (const int blocks : {1, 7}) CheckDecode(c, 1, 1, 2, blocks);
    CheckDecode(c, 3, 4, 4, 5);
  }
}

// --- batch --------------------------------------------------------------------------------------

TEST(CudaGqsTile, FourColumnsLieWhereTheyAreReadAsEight) {
  for (int row = 0; row < kDenseTile.features; ++row) {
    for (int column = 0; column < kTileCols; ++column) {
      EXPECT_EQ(GqsTileOffset(row, column / 16, column % 16 / 4) + column % 4 * 2,
                RowOffset(row, column / 8) + column % 8 * 2);
    }
  }
}

// The kernels that expand W: every unit that a mask keeps is the one that the reader has there.
TEST_P(CudaGqs, ExpandedUnitsRebuildTheMatrix) {
  for (const auto& [rows, cols] : {Shape{3, 17}, Shape{70, 1000}, Shape{33, 129}}) {
    const GqsCase c = MakeGqsCase(rows, cols, GetParam());
    const GqsLayout s = ReadGqsLayout(c.structure.data(), SizesOf(c));
    for (const int units : {2, 4}) {
      for (int64_t row = 0; row < rows; ++row) {
        int64_t next = GqsFirstUnit(s, c.structure.data(), row);
        for (int64_t first = 0; first < GqsUnitsOfX(s); first += units) {
          const uint32_t kept = GqsUnitMask(s, c.structure.data(), row, first, units);
          for (int j = 0; j < units; ++j) {
            const int64_t unit = GqsKeptUnit(s, next, kept, j);
            for (int i = 0; i < kGqsUnit; ++i) {
              const int64_t k = (first + j) * kGqsUnit + i;
              if (k >= cols) {
                continue;
              }
              double weight = 0;
              if (unit >= 0) {
                const int64_t group = unit >> s.unit_shift;
                const uint32_t word = WordOf(c, (unit >> s.block_shift) * kGqsUnit + i);
                const float code =
                    GqsCodeOf(word, s.bits, static_cast<int>(unit) & ((1 << s.block_shift) - 1));
                weight = static_cast<double>(
                    (code - (s.zeros ? ScaleOf(c, s.groups + group) : 0.0f)) * ScaleOf(c, group));
                if (!c.row_scale.empty()) {
                  weight *= static_cast<double>(c.row_scale[static_cast<size_t>(row)]);
                }
              }
              const double expected = c.weight[static_cast<size_t>(row * cols + k)];
              ASSERT_NEAR(weight, expected, 1e-6 * std::abs(expected)) << row << " " << k;
              ASSERT_EQ(weight == 0, expected == 0);
            }
          }
          next += GqsOnes(kept);
        }
        EXPECT_EQ(next, GqsRowStart(s, c.structure.data(), row + 1) << s.unit_shift);
      }
    }
  }
}

// Masks that keep more than the offsets say lead to no unit beyond the last.
TEST_P(CudaGqs, CorruptMasksStayInsideTheArrays) {
  GqsCase c = MakeGqsCase(20, 500, GetParam());
  const GqsLayout s = ReadGqsLayout(c.structure.data(), SizesOf(c));
  std::memset(c.structure.data() + s.mask, 0xff, static_cast<size_t>(s.rows * s.mask_bytes));
  for (int64_t row = 0; row < s.rows; ++row) {
    int64_t next = GqsFirstUnit(s, c.structure.data(), row);
    for (int64_t first = 0; first < 4 * s.mask_bytes * 8; first += 4) {
      const uint32_t kept = GqsUnitMask(s, c.structure.data(), row, first, 4);
      if (first >> s.unit_shift >= s.row_groups) {
        EXPECT_EQ(kept, 0u);
      }
      for (int j = 0; j < 4; ++j)
        EXPECT_LT(GqsKeptUnit(s, next, kept, j), s.groups << s.unit_shift);
      next += GqsOnes(kept);
    }
  }
  // The decode kernel's table: nothing but the task's entries, and none that leads out of x.
  std::vector<GqsEntry> entry(kGqsEntries, GqsEntry{});
  std::vector<int> rows(kGqsEntries, 0);
  for (int64_t task = 0; task < s.tasks; ++task) {
    const GqsTask t = GqsTaskOf(s, task);
    int64_t kept = GqsRowStart(s, c.structure.data(), GqsTaskRow(s, c.structure.data(), task));
    for (int64_t row = 0; row < s.rows; ++row) {
      for (int byte = 0; byte < s.mask_bytes; ++byte) {
        const uint32_t bits = GqsMaskByte(s, c.structure.data(), row, byte);
        GqsPutEntries(s, t, {row, byte}, bits, kept, 0, 2, entry.data(), rows.data());
        kept += std::popcount(bits);
      }
    }
  }
  for (const GqsEntry& e : entry) {
    EXPECT_LT(e.at & ~kGqsRowBegins, GqsUnitAt(GqsUnitsOfX(s), 2) + 1);
  }
  // Offsets and tasks' rows of any value.
  for (const uint32_t wrong : {~0u, 0x80000000u}) {
    std::memcpy(c.structure.data() + kGqsHeaderBytes + 4 * 7, &wrong, 4);
    std::memcpy(c.structure.data() + s.task_row, &wrong, 4);
    EXPECT_EQ(GqsRowStart(s, c.structure.data(), 7), s.groups);
    EXPECT_EQ(GqsTaskRow(s, c.structure.data(), 0), s.rows - 1);
    for (int64_t row = 0; row < s.rows; ++row) {
      const GqsSplit split = GqsSplitOf(s, c.structure.data(), row, 3);
      EXPECT_LE(split.end, 3);
      EXPECT_GE(split.first, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaGqs, ::testing::ValuesIn(kKinds));

}  // namespace
}  // namespace sparsekern::cuda
