// SPDX-License-Identifier: Apache-2.0
// N:M matrices for the tests of CUDA kernels without a GPU, and what the two sparse tensor-core
// kernels have in common there: stages as all threads of a block fill them, and their operand A.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "cuda_fragments.h"
#include "ops/nm_linear/cuda_sparse_copies.h"
#include "sparsekern/nm.h"

namespace sparsekern::cuda {

struct Pattern {
  int n, m;
};

// A matrix of small integers, dense (row-major, zeros where nothing is kept) and packed.
struct Packed {
  int64_t rows, cols;
  std::vector<float> dense;
  testing::Elements values;
  std::vector<uint8_t> structure;
  NmLayout layout;
};

inline Packed Pack(int64_t rows, int64_t cols, Pattern pattern, DType dtype, uint64_t seed = 1) {
  Packed p;
  p.rows = rows;
  p.cols = cols;
  const auto count = static_cast<size_t>(rows * cols);
  p.dense.assign(count, 0.0f);
  testing::Elements elements = testing::Zeros(dtype, rows * cols);
  std::vector<uint8_t> mask(count, 0);
  testing::Random random(seed);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < cols; g += pattern.m) {
      int left = random.Below(8) == 0 ? random.Below(pattern.n + 1) : pattern.n;
      for (int64_t k = g; k < std::min(cols, g + pattern.m) && left > 0; ++k) {
        if (random.Below(static_cast<int>(g + pattern.m - k)) >= left) continue;
        --left;
        const auto at = static_cast<size_t>(r * cols + k);
        mask[at] = 1;
        p.dense[at] = static_cast<float>(random.Below(8) + 1) * (random.Below(2) == 0 ? -1 : 1);
        elements.Set(at, p.dense[at]);
      }
    }
  }
  NmPacker packer;
  const Status status =
      packer.Plan(elements.data(), dtype, rows, cols, pattern.n, pattern.m, mask.data());
  EXPECT_TRUE(status.ok()) << status.message();
  p.values = testing::Zeros(dtype, packer.value_count());
  p.structure.assign(packer.structure_bytes(), 0);
  packer.Fill(p.values.data(), p.structure.data());
  p.layout = ReadNmLayout(p.structure.data(), static_cast<int64_t>(p.structure.size()),
                          packer.value_count(), rows, cols);
  EXPECT_TRUE(p.layout.consistent);
  return p;
}

inline LinearProblem ProblemOf(int64_t x_rows, int64_t rows, int64_t cols, Pattern pattern, DType x,
                               DType values) {
  const int window = pattern.m <= 4 ? 4 : pattern.m <= 16 ? 16 : 32;
  const NmLayout s = NmLayoutOf(rows, cols, window, window / pattern.m * pattern.n, 0, 0);
  return {x_rows,
          rows,
          cols,
          s.panels * s.steps * kNmPanelRows,
          kNmHeaderBytes + s.panels * s.words * kNmPanelRows * 4,
          x,
          values};
}

// Stages of a block of threads in shared memory, from address kSharedBase on, as cp.async fills
// them.
constexpr uint32_t kSharedBase = 1024;

template <int Features, int Tokens, int Threads>
class Stages {
 public:
  using Copies = SparseCopies<Features, Tokens, Threads>;
  static constexpr int kBytes = SparseStageBytes(Features, Tokens);

  Stages(const Packed& p, const std::vector<float>& x, int64_t x_rows, ResultTile at, int count)
      : shared(static_cast<size_t>(count * kBytes), 0xee),
        packed_(p),
        x_(static_cast<size_t>((p.cols + 7) / 8 * 8 * x_rows)) {
    LinearCall a = {};
    a.problem.x_rows = x_rows;
    a.x_cols = a.x_stride = (p.cols + 7) / 8 * 8;
    for (int64_t m = 0; m < x_rows; ++m) {
      for (int64_t k = 0; k < p.cols; ++k) {
        x_[static_cast<size_t>(m * a.x_stride + k)] =
            BF16FromF32(x[static_cast<size_t>(m * p.cols + k)]);
      }
    }
    a.x = x_.data();
    a.values = p.values.bytes.data();
    a.structure = p.structure.data();
    for (int thread = 0; thread < Threads; ++thread) copies_.emplace_back(a, p.layout, at, thread);
  }

  // The next tile of columns into a stage: each of its 16 bytes once, from within the arrays.
  void Fill(int stage) {
    std::vector<int> seen(kBytes / 16, 0);
    for (Copies& of_thread : copies_) {
      of_thread.Next([&](int to, const void* from, bool there) {
        ASSERT_TRUE(to >= 0 && to % 16 == 0 && to + 16 <= kBytes) << to;
        ++seen[static_cast<size_t>(to / 16)];
        uint8_t* at = shared.data() + stage * kBytes + to;
        std::memset(at, 0, 16);
        if (!there) return;
        ASSERT_TRUE(In(from, packed_.values.bytes.data(), packed_.values.bytes.size()) ||
                    In(from, packed_.structure.data(), packed_.structure.size()) ||
                    In(from, x_.data(), x_.size() * 2));
        std::memcpy(at, from, 16);
      });
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), kBytes / 16);
  }

  // A and metadata in the registers of a warp, for a panel: values of `half` of the columns, words
  // of the panels and halves that word(lane) names.
  Warp LoadA(int stage, int panel, int half) const {
    return LoadMatrices(
        shared,
        [&](int lane) {
          const ValueAddress v = SparseAOfLane(lane);
          return stage * kBytes + ValueOffset(panel, half * 16 + v.step, v.half);
        },
        true);
  }
  template <typename Word>
  void LoadMetadata(int stage, Word word, uint32_t (&metadata)[32]) const {
    for (int lane = 0; lane < 32; ++lane) {
      const auto [panel, half] = word(lane);
      const uint8_t* from = shared.data() + stage * kBytes + Copies::kWordsAt +
                            WordOffset(Copies::kPanels, panel, half, lane / 4);
      uint32_t upper, lower;
      std::memcpy(&upper, from, 4);
      std::memcpy(&lower, from + 32, 4);
      metadata[lane] = OrderedMetadata(Metadata(upper, lower, lane));
    }
  }

  std::vector<uint8_t> shared;

 private:
  static bool In(const void* p, const void* array, size_t bytes) {
    const auto* at = static_cast<const uint8_t*>(p);
    const auto* begin = static_cast<const uint8_t*>(array);
    return at >= begin && at + 16 <= begin + bytes;
  }

  const Packed& packed_;
  std::vector<Half> x_;
  std::vector<Copies> copies_;
};

// A of a warp as 16 x 32, by the registers of mma.sp.m16n8k32 and wgmma.sp.m64nNk32 with 16-bit
// elements.
inline void ExpandA(const Warp& a, const uint32_t (&metadata)[32], int selector,
                    float (&dense)[16][32]) {
  for (auto& row : dense) {
    for (float& v : row) v = 0.0f;
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int r = 0; r < 4; ++r) {
      for (int h = 0; h < 2; ++h) {
        // A: registers 0 and 2 are row `group`, 1 and 3 the row eight below; 2 and 3 the upper half
        // of the sixteen stored columns.
        const int row = group + 8 * (r & 1), stored = 2 * thread + h + 8 * (r >> 1);
        // Two stored columns are a group of four. Its four bits of metadata are in the lane of the
        // selected pair that has its sixteen columns, rows 8 to 15 in the upper half.
        const uint32_t word = metadata[4 * (row % 8) + 2 * selector + stored / 8];
        const uint32_t code = (word >> (16 * (row / 8) + 4 * (stored / 2 % 4))) & 15u;
        EXPECT_LT(code & 3u, code >> 2) << "ordered metadata";
        const int column = stored / 2 * 4 + static_cast<int>(h == 0 ? code & 3u : code >> 2);
        dense[row][column] += F32FromBF16(a.r[lane][r].half[h]);
      }
    }
  }
}

// check.operator()<Features, Tokens>() for the larger of kSparseTiles, 0, or the smaller, 1.
template <typename Check>
void WithSparseTile(int tile, const Check& check) {
  constexpr TileSize kLarge = kSparseTiles[0], kSmall = kSparseTiles[1];
  if (tile == 0) {
    check.template operator()<kLarge.features, kLarge.rows_of_x>();
  } else {
    check.template operator()<kSmall.features, kSmall.rows_of_x>();
  }
}

// A tile of sums, [token][feature], to the part of y [x_rows][rows] that there is of it.
inline void StoreTile(const std::vector<float>& sums, TileSize tile, ResultTile at, int64_t x_rows,
                      int64_t rows, std::vector<float>* y) {
  for (int token = 0; token < tile.rows_of_x; ++token) {
    for (int feature = 0; feature < tile.features; ++feature) {
      const int64_t m = at.token * tile.rows_of_x + token;
      const int64_t n = at.feature * tile.features + feature;
      if (m >= x_rows || n >= rows) continue;
      (*y)[static_cast<size_t>(m * rows + n)] =
          sums[static_cast<size_t>(token * tile.features + feature)];
    }
  }
}

}  // namespace sparsekern::cuda
