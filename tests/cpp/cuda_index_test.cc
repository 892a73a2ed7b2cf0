// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel's index arithmetic, run on the host: walks a packed matrix as the kernel's
// threads do and rebuilds the dense one.
#include "ops/csr_spmm/cuda_index.h"

#include <gtest/gtest.h>

#include <vector>

#include "sparsekern/csr.h"

namespace sparsekern {
namespace {

struct Packed {
  std::vector<float> dense, values;
  std::vector<uint8_t> structure;
};

Packed Pack(int64_t rows, int64_t cols, int block_rows, int keep_percent) {
  Packed p;
  p.dense.resize(rows * cols);
  uint32_t state = 12345;
  for (int64_t i = 0; i < rows * cols; ++i) {
    state = state * 1664525u + 1013904223u;
    const bool kept = static_cast<int>((state >> 16) % 100) < keep_percent;
    p.dense[i] = kept ? static_cast<float>(static_cast<int>(state >> 8) % 1000 + 1) : 0.0f;
  }
  CsrPacker packer;
  EXPECT_TRUE(packer.Plan(p.dense.data(), DType::kF32, rows, cols, nullptr, block_rows).ok());
  p.values.resize(packer.value_count());
  p.structure.resize(packer.structure_bytes());
  packer.Fill(p.values.data(), p.structure.data());
  return p;
}

class CudaIndex : public testing::TestWithParam<std::tuple<int64_t, int64_t, int, int>> {};

TEST_P(CudaIndex, WalkRebuildsTheMatrix) {
  const auto [rows, cols, block_rows, parts] = GetParam();
  const Packed p = Pack(rows, cols, block_rows, 20);
  const uint8_t* structure = p.structure.data();
  const int64_t bytes = static_cast<int64_t>(p.structure.size());
  const cuda::CsrLayout s =
      cuda::ReadLayout(structure, bytes, static_cast<int64_t>(p.values.size()), rows, cols);
  ASSERT_TRUE(s.consistent);
  std::vector<float> rebuilt(rows * cols, 0.0f);
  for (int64_t panel = 0; panel < s.panels; ++panel) {
    for (int part = 0; part < parts; ++part) {
      const cuda::SliceRange blocks = cuda::PartOfBlocks(s.blocks, part, parts);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t t = panel * s.blocks + block;
        for (int slice = 0; slice < s.panel_groups / 16; ++slice) {
          const cuda::SliceRange steps = cuda::SliceSteps(s, structure, t, slice);
          for (int lane = 0; lane < 16; ++lane) {
            const int64_t position = t * s.panel_groups + slice * 16 + lane;
            const int64_t group = panel * s.panel_groups + structure[s.order_at + position];
            const int count = structure[s.count_at + position];
            for (int64_t q = steps.begin; q < steps.end && q - steps.begin < count; ++q) {
              const int64_t k = block * 128 + structure[s.index_at + q * 16 + lane];
              for (int i = 0; i < s.block_rows; ++i) {
                const int64_t r = group * s.block_rows + i;
                if (r < rows) rebuilt[r * cols + k] += p.values[(q * s.block_rows + i) * 16 + lane];
              }
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(rebuilt, p.dense);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaIndex,
                         testing::Combine(testing::Values(1, 17, 300), testing::Values(1, 128, 517),
                                          testing::Values(1, 2, 4), testing::Values(1, 3)));

TEST(CudaIndexLayout, RefusesWhatDoesNotFit) {
  const Packed p = Pack(40, 200, 1, 30);
  const int64_t bytes = static_cast<int64_t>(p.structure.size());
  const int64_t count = static_cast<int64_t>(p.values.size());
  const uint8_t* structure = p.structure.data();
  EXPECT_TRUE(cuda::ReadLayout(structure, bytes, count, 40, 200).consistent);
  EXPECT_FALSE(cuda::ReadLayout(structure, bytes - 16, count, 40, 200).consistent);
  EXPECT_FALSE(cuda::ReadLayout(structure, bytes, count - 16, 40, 200).consistent);
  EXPECT_FALSE(cuda::ReadLayout(structure, bytes, count, 41, 200).consistent);
  EXPECT_FALSE(cuda::ReadLayout(structure, bytes, count, 40, 201).consistent);
}

TEST(CudaIndexLayout, CorruptOffsetsStayInsideTheArrays) {
  Packed p = Pack(40, 200, 1, 30);
  for (int i = 0; i < 8; ++i) p.structure[64 + i] = 0xff;  // tile_ptr[0] = 2^64 - 1
  const cuda::CsrLayout s =
      cuda::ReadLayout(p.structure.data(), p.structure.size(), p.values.size(), 40, 200);
  const cuda::SliceRange steps = cuda::SliceSteps(s, p.structure.data(), 0, 0);
  EXPECT_LE(steps.end, s.steps);
  EXPECT_GE(steps.begin, 0);
}

}  // namespace
}  // namespace sparsekern
