// SPDX-License-Identifier: Apache-2.0
// Structures that nobody validated. The operators promise wrong numbers and never a wild access:
// under AddressSanitizer this is the proof.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "csr_case.h"

namespace sparsekern::testing {
namespace {

// Every operator, on whatever the structure claims to be.
void RunAll(const CsrMatrix& w) {
  const int64_t rows = w.structure.rows;
  const int64_t cols = w.structure.cols;
  if (rows > 5000 || cols > 5000) return;  // a flipped header may be valid and huge
  for (const int64_t x_rows : {1, 3, 40}) {
    Elements x = RandomElements(DType::kF32, x_rows * cols, 1);
    Elements y = Zeros(DType::kF32, x_rows * rows);
    LinearArgs linear;
    linear.x = x.data();
    linear.y = y.data();
    linear.x_rows = x_rows;
    linear.x_stride = cols;
    linear.y_stride = rows;
    EXPECT_TRUE(CsrLinear(w, linear, Serial()).ok());
    if (w.dtype == DType::kI8) {
      linear.int8_x = true;
      EXPECT_TRUE(CsrLinear(w, linear, Serial()).ok());
    }
    std::vector<float> values_grad(static_cast<size_t>(w.structure.value_count()));
    CsrSddmmArgs sddmm;
    sddmm.grad = y.data();
    sddmm.x = x.data();
    sddmm.x_rows = x_rows;
    sddmm.values_grad = values_grad.data();
    EXPECT_TRUE(CsrSddmm(w.structure, sddmm, Serial()).ok());
  }
  Elements x = RandomElements(DType::kF32, cols * 21, 2);
  Elements y = Zeros(DType::kF32, rows * 21);
  CsrConv2dArgs conv;
  conv.x = x.data();
  conv.y = y.data();
  conv.batch = 1;
  conv.height = 7;
  conv.width = 3;
  EXPECT_TRUE(CsrConv2d(w, conv, Serial()).ok());
}

class CsrCorruptTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(CsrCorruptTest, RandomOrderCountAndIndex) {
  const ForcedIsa forced(GetParam());
  for (uint64_t seed = 0; seed < 12; ++seed) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
      for (const int r : {1, 2, 4}) {
        Case c = MakeCase(seed % 2 == 0 ? 40 : 300, seed % 3 == 0 ? 100 : 150, 0.2, dtype, r, seed);
        const auto start = static_cast<size_t>(c.Matrix().structure.order - c.structure.data());
        Random random(seed);
        for (size_t i = start; i < c.structure.size(); ++i) {
          // All ones reaches farthest; random bytes reach everywhere else.
          c.structure[i] = seed == 0 ? 255 : static_cast<uint8_t>(random.Bits());
        }
        RunAll(c.Matrix());
      }
    }
  }
}

TEST_P(CsrCorruptTest, RandomTileOffsetsAndHeaders) {
  const ForcedIsa forced(GetParam());
  int accepted = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    Case c = MakeCase(70, 260, 0.1, DType::kF32, 1 << (seed % 3), seed % 4);
    Random random(seed + 77);
    const auto end = static_cast<size_t>(c.Matrix().structure.order - c.structure.data());
    for (int flips = 1 + random.Below(2); flips > 0; --flips) {
      const auto bit = static_cast<size_t>(random.Below(static_cast<int>(end) * 8));
      c.structure[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
    }
    CsrMatrix w;
    w.values = c.values.data();
    const Status status =
        ParseCsrStructure(c.structure.data(), c.structure.size(), "test", &w.structure);
    if (!status.ok() || w.structure.value_count() != static_cast<int64_t>(c.values.size()))
      continue;
    ++accepted;
    RunAll(w);
  }
  EXPECT_GT(accepted, 10);
}

INSTANTIATE_TEST_SUITE_P(Isas, CsrCorruptTest, ::testing::ValuesIn(RunnableInt8Isas()), IsaName);

}  // namespace
}  // namespace sparsekern::testing
