// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "csr_case.h"

namespace sparsekern::testing {
namespace {

std::vector<float> Gradient(const Case& c, const Elements& grad, const Elements& x, int64_t x_rows,
                            const ParallelFor& parallel_for) {
  std::vector<float> out(c.values.size(), 5.0f);
  CsrSddmmArgs args;
  args.grad = grad.data();
  args.x = x.data();
  args.dtype = x.dtype;
  args.x_rows = x_rows;
  args.values_grad = out.data();
  const Status status = CsrSddmm(c.Matrix().structure, args, parallel_for);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

void Check(const Case& c, int64_t x_rows, DType dtype) {
  SCOPED_TRACE(std::to_string(x_rows) + " rows, r" + std::to_string(c.block_rows) + " " +
               Name(dtype));
  const Elements grad = RandomElements(dtype, x_rows * c.rows, 11);
  const Elements x = RandomElements(dtype, x_rows * c.cols, 12);
  const std::vector<float> got = Gradient(c, grad, x, x_rows, Serial());
  // Where each weight lies: pack its number as the weight. Exact in float32 below 2^24.
  Case places = c;
  for (size_t i = 0; i < places.mask.size(); ++i) places.dense.Set(i, static_cast<float>(i + 1));
  Pack(&places);
  for (size_t i = 0; i < got.size(); ++i) {
    const auto number = static_cast<int64_t>(places.values[i]);
    if (number == 0) {
      ASSERT_EQ(got[i], 0.0f) << "padding " << i;
      continue;
    }
    const int64_t row = (number - 1) / c.cols;
    const int64_t column = (number - 1) % c.cols;
    Sum sum;
    for (int64_t m = 0; m < x_rows; ++m) {
      sum.Add(grad[static_cast<size_t>(m * c.rows + row)] *
              x[static_cast<size_t>(m * c.cols + column)]);
    }
    ASSERT_TRUE(Near(static_cast<double>(got[i]), sum, DType::kF32)) << row << ", " << column;
  }
}

class CsrSddmmTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(CsrSddmmTest, RowCountsAndTypes) {
  const ForcedIsa forced(GetParam());
  for (const int r : {1, 2, 4}) {
    const Case c = MakeCase(75, 140, 0.15, DType::kF32, r);
    for (const int64_t x_rows : {0, 1, 3, 8, 15, 16, 17, 33, 64, 65, 130})
      Check(c, x_rows, DType::kF32);
    for (const int64_t x_rows : {1, 17, 40}) {
      Check(c, x_rows, DType::kBF16);
      Check(c, x_rows, DType::kF16);
    }
  }
}

TEST_P(CsrSddmmTest, NothingKept) {
  const ForcedIsa forced(GetParam());
  Check(MakeCase(20, 30, 0.0, DType::kF32, 1), 5, DType::kF32);
}

#if !defined(__wasm__)
TEST_P(CsrSddmmTest, ThreadsChangeNoBit) {
  const ForcedIsa forced(GetParam());
  const Case c = MakeCase(600, 150, 0.1, DType::kF32, 1);
  const Elements grad = RandomElements(DType::kF32, 90 * c.rows, 1);
  const Elements x = RandomElements(DType::kF32, 90 * c.cols, 2);
  const std::vector<float> serial = Gradient(c, grad, x, 90, Serial());
  for (const int threads : {2, 3, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(Gradient(c, grad, x, 90, pool.parallel_for()), serial);
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(Isas, CsrSddmmTest, ::testing::ValuesIn(RunnableIsas()), IsaName);

}  // namespace
}  // namespace sparsekern::testing
