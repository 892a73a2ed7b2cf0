// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>

#include "csr_case.h"

namespace sparsekern::testing {
namespace {

struct Map {
  int64_t batch, height, width, stride;
};

void Check(const Case& c, const Map& map, DType dtype, Activation activation,
           const ParallelFor& parallel_for) {
  SCOPED_TRACE(std::to_string(map.batch) + "x" + std::to_string(map.height) + "x" +
               std::to_string(map.width) + " stride " + std::to_string(map.stride) + " r" +
               std::to_string(c.block_rows) + " " + Name(c.values.dtype) + " x " + Name(dtype));
  const int64_t out_height = (map.height + map.stride - 1) / map.stride;
  const int64_t out_width = (map.width + map.stride - 1) / map.stride;
  const Elements x = RandomElements(dtype, map.batch * c.cols * map.height * map.width, 3);
  Elements y = RandomElements(dtype, map.batch * c.rows * out_height * out_width, 4);
  const std::vector<float> bias = RandomFloats(c.rows, 5);
  CsrConv2dArgs args;
  args.x = x.data();
  args.y = y.data();
  args.dtype = dtype;
  args.batch = map.batch;
  args.height = map.height;
  args.width = map.width;
  args.stride = map.stride;
  args.epilogue = {bias.data(), activation};
  const Status status = CsrConv2d(c.Matrix(), args, parallel_for);
  ASSERT_TRUE(status.ok()) << status.message();
  size_t at = 0;
  for (int64_t b = 0; b < map.batch; ++b) {
    for (int64_t n = 0; n < c.rows; ++n) {
      for (int64_t i = 0; i < out_height; ++i) {
        for (int64_t j = 0; j < out_width; ++j, ++at) {
          const auto x_at = [&](int64_t k) {
            return x[static_cast<size_t>(
                ((b * c.cols + k) * map.height + i * map.stride) * map.width + j * map.stride)];
          };
          ASSERT_TRUE(Near(y[at], Dot(c, n, x_at, bias.data()), dtype, activation))
              << "image " << b << ", channel " << n << ", pixel " << i << ", " << j;
        }
      }
    }
  }
}

class CsrConv2dTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(CsrConv2dTest, MapsAndStrides) {
  const ForcedIsa forced(GetParam());
  for (const int r : {1, 2, 4}) {
    const Case c = MakeCase(37, 131, 0.15, DType::kF32, r);
    for (const int64_t stride : {1, 2, 3}) {
      for (const Map& map : {Map{1, 1, 1, 0}, Map{2, 1, 7, 0}, Map{1, 5, 9, 0}, Map{2, 8, 8, 0},
                             Map{1, 14, 14, 0}, Map{3, 3, 2, 0}}) {
        Check(c, {map.batch, map.height, map.width, stride}, DType::kF32, Activation::kRelu,
              Serial());
      }
    }
  }
}

TEST_P(CsrConv2dTest, Types) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
    const Case c = MakeCase(30, 60, 0.2, dtype, 1);
    for (const DType x_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const int64_t stride : {1, 2}) {
        Check(c, {1, 7, 6, stride}, x_dtype, Activation::kHardswish, Serial());
      }
    }
  }
}

#if !defined(__wasm__)
TEST_P(CsrConv2dTest, Threads) {
  const ForcedIsa forced(GetParam());
  ThreadPool pool(3);
  for (const int r : {1, 4}) {
    const Case c = MakeCase(280 * r, 60, 0.05, DType::kF32, r);
    for (const int64_t batch : {1, 4}) {
      Check(c, {batch, 9, 9, 1}, DType::kF32, Activation::kNone, pool.parallel_for());
    }
  }
}
#endif

TEST_P(CsrConv2dTest, EmptyMapsDoNothing) {
  const ForcedIsa forced(GetParam());
  const Case c = MakeCase(10, 10, 0.5, DType::kF32, 1);
  for (const Map& map : {Map{0, 3, 3, 1}, Map{1, 0, 3, 1}, Map{1, 3, 0, 2}}) {
    CsrConv2dArgs args;
    args.batch = map.batch;
    args.height = map.height;
    args.width = map.width;
    args.stride = map.stride;
    EXPECT_TRUE(CsrConv2d(c.Matrix(), args, Serial()).ok());
  }
}

TEST(CsrConv2dErrorTest, ArgumentsAreChecked) {
  const Case c = MakeCase(10, 12, 0.5, DType::kF32, 1);
  for (const Map& map : {Map{-1, 1, 1, 1}, Map{1, -1, 1, 1}, Map{1, 1, -1, 1}, Map{1, 1, 1, 0}}) {
    CsrConv2dArgs args;
    args.batch = map.batch;
    args.height = map.height;
    args.width = map.width;
    args.stride = map.stride;
    const Status status = CsrConv2d(c.Matrix(), args, Serial());
    EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
    EXPECT_EQ(status.message().rfind("csr_conv2d: ", 0), 0u) << status.message();
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, CsrConv2dTest, ::testing::ValuesIn(RunnableIsas()), IsaName);

}  // namespace
}  // namespace sparsekern::testing
