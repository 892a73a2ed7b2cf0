// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "csr_case.h"

namespace sparsekern::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8};
constexpr DType kXTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

struct Call {
  int64_t x_rows = 1;
  DType x_dtype = DType::kF32;
  Activation activation = Activation::kNone;
  bool bias = false;
  int64_t x_gap = 0;  // elements between rows of x; y has as many
  bool infinities = false;
};

// Runs one product and compares every element; checks too that the gaps of y stay as they were.
void Check(const Case& c, const Call& call, const ParallelFor& parallel_for) {
  SCOPED_TRACE(std::to_string(c.rows) + "x" + std::to_string(c.cols) + " r" +
               std::to_string(c.block_rows) + " " + Name(c.values.dtype) + ", x_rows " +
               std::to_string(call.x_rows) + " " + Name(call.x_dtype) + ", activation " +
               std::to_string(static_cast<int>(call.activation)));
  const int64_t x_stride = c.cols + call.x_gap;
  const int64_t y_stride = c.rows + call.x_gap;
  // The last row ends where the buffer ends.
  Elements x = RandomElements(call.x_dtype, (call.x_rows - 1) * x_stride + c.cols, 7);
  Elements y = RandomElements(call.x_dtype, (call.x_rows - 1) * y_stride + c.rows, 8);
  const Elements y_before = y;
  if (call.infinities) {  // column 0 of a block is what padding names
    const float inf = std::numeric_limits<float>::infinity();
    x.Set(0, inf);
    if (c.cols > 128) x.Set(static_cast<size_t>((call.x_rows - 1) * x_stride + 128), std::nanf(""));
    x.Set(static_cast<size_t>(call.x_rows / 2 * x_stride + c.cols / 2), -inf);
  }
  const std::vector<float> bias = RandomFloats(c.rows, 9);
  LinearArgs args;
  args.x = x.data();
  args.y = y.data();
  args.dtype = call.x_dtype;
  args.x_rows = call.x_rows;
  args.x_stride = x_stride;
  args.y_stride = y_stride;
  args.epilogue.bias = call.bias ? bias.data() : nullptr;
  args.epilogue.activation = call.activation;
  const Status status = CsrLinear(c.Matrix(), args, parallel_for);
  ASSERT_TRUE(status.ok()) << status.message();
  for (int64_t m = 0; m < call.x_rows; ++m) {
    for (int64_t n = 0; n < y_stride && (m + 1 < call.x_rows || n < c.rows); ++n) {
      const auto at = static_cast<size_t>(m * y_stride + n);
      if (n >= c.rows) {
        ASSERT_EQ(y[at], y_before[at]) << "written beyond row " << m;
        continue;
      }
      const auto x_at = [&](int64_t k) { return x[static_cast<size_t>(m * x_stride + k)]; };
      ASSERT_TRUE(Near(y[at], Dot(c, n, x_at, args.epilogue.bias), call.x_dtype, call.activation))
          << "at " << m << ", " << n;
    }
  }
}

class CsrLinearTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(CsrLinearTest, RowCounts) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : kDTypes) {
    for (const int r : {1, 2, 4}) {
      const Case c = MakeCase(75, 140, 0.2, dtype, r);
      for (const int64_t x_rows : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129}) {
        Check(c, {.x_rows = x_rows}, Serial());
      }
    }
  }
}

TEST_P(CsrLinearTest, ShapesAndDensities) {
  const ForcedIsa forced(GetParam());
  constexpr int64_t shapes[][2] = {{1, 1}, {1, 129}, {129, 1}, {16, 128}, {257, 40}, {33, 257}};
  for (const auto& shape : shapes) {
    for (const double density : {0.0, 0.1, 1.0}) {
      for (const int r : {1, 4}) {
        const Case c = MakeCase(shape[0], shape[1], density, DType::kF32, r);
        for (const int64_t x_rows : {1, 3, 20}) {
          Check(c, {.x_rows = x_rows, .bias = true, .x_gap = 3}, Serial());
        }
      }
    }
  }
}

TEST_P(CsrLinearTest, XTypesAndActivations) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : kDTypes) {
    const Case c = MakeCase(50, 130, 0.2, dtype, 2);
    for (const DType x_dtype : kXTypes) {
      for (int a = 0; a <= 6; ++a) {
        for (const int64_t x_rows : {1, 6, 35}) {
          Check(c, {x_rows, x_dtype, static_cast<Activation>(a), a % 2 == 0, 5}, Serial());
        }
      }
    }
  }
}

TEST_P(CsrLinearTest, APrunedWeightMeetsNoInfinity) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : kDTypes) {
    for (const int r : {1, 2, 4}) {
      const Case c = MakeCase(60, 200, 0.1, dtype, r);
      for (const DType x_dtype : kXTypes) {
        for (const int64_t x_rows : {1, 2, 9, 40}) {
          Check(c, {.x_rows = x_rows, .x_dtype = x_dtype, .bias = true, .infinities = true},
                Serial());
        }
      }
    }
  }
}

#if !defined(__wasm__)
TEST_P(CsrLinearTest, Threads) {
  const ForcedIsa forced(GetParam());
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    for (const int r : {1, 4}) {
      const Case c = MakeCase(530 * r, 150, 0.05, DType::kF32, r);
      for (const int64_t x_rows : {1, 7, 40, 150}) {
        Check(c, {.x_rows = x_rows, .bias = true}, pool.parallel_for());
      }
    }
  }
}
#endif

TEST_P(CsrLinearTest, NoRowsOfXDoNothing) {
  const ForcedIsa forced(GetParam());
  const Case c = MakeCase(10, 10, 0.5, DType::kF32, 1);
  LinearArgs args;
  args.x_stride = 10;
  args.y_stride = 10;
  EXPECT_TRUE(CsrLinear(c.Matrix(), args, Serial()).ok());
}

TEST(CsrLinearErrorTest, ArgumentsAreChecked) {
  const Case c = MakeCase(10, 12, 0.5, DType::kF32, 1);
  Elements x = Zeros(DType::kF32, 12);
  Elements y = Zeros(DType::kF32, 10);
  LinearArgs good;
  good.x = x.data();
  good.y = y.data();
  good.x_rows = 1;
  good.x_stride = 12;
  good.y_stride = 10;
  ASSERT_TRUE(CsrLinear(c.Matrix(), good, Serial()).ok());
  const auto code = [&](auto change) {
    CsrMatrix w = c.Matrix();
    LinearArgs args = good;
    change(w, args);
    const Status status = CsrLinear(w, args, Serial());
    EXPECT_EQ(status.message().rfind("csr_linear: ", 0), 0u) << status.message();
    return status.code();
  };
  using W = CsrMatrix&;
  using A = LinearArgs&;
  EXPECT_EQ(code([](W, A a) { a.dtype = DType::kI8; }), StatusCode::kInvalidType);
  EXPECT_EQ(code([](W w, A) { w.dtype = static_cast<DType>(9); }), StatusCode::kInvalidType);
  EXPECT_EQ(code([](W w, A) { w.dtype = DType::kI8; }), StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.x_stride = 11; }), StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.y_stride = 9; }), StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.x_rows = -1; }), StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.epilogue.activation = static_cast<Activation>(7); }),
            StatusCode::kInvalidValue);
}

INSTANTIATE_TEST_SUITE_P(Isas, CsrLinearTest, ::testing::ValuesIn(RunnableIsas()), IsaName);

}  // namespace
}  // namespace sparsekern::testing
