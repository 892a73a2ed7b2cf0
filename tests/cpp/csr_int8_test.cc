// SPDX-License-Identifier: Apache-2.0
// x in int8: the rounding of x, which is part of the specification, and the products after it, on
// every kernel set with and without int8 dot products.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "csr_case.h"

namespace sparsekern::testing {
namespace {

// A row of x as the kernels are to see it; NaN throughout where it is not finite.
std::vector<double> Quantized(const std::vector<double>& row) {
  float most = 0;
  bool finite = true;
  for (const double v : row) {
    most = std::max(most, std::fabs(static_cast<float>(v)));
    finite = finite && std::isfinite(v);
  }
  const float step = most / 127.0f, inverse = most > 0x1p-100f ? 127.0f / most : 0.0f;
  std::vector<double> out;
  for (const double v : row) {
    const float number = std::nearbyintf(static_cast<float>(v) * inverse);
    out.push_back(finite ? static_cast<double>(number) * static_cast<double>(step) : NAN);
  }
  return out;
}

::testing::AssertionResult NearOrNaN(double got, const Case& c, int64_t n,
                                     const std::vector<double>& x, const float* bias, DType dtype,
                                     Activation activation) {
  if (std::isnan(x[0])) {
    return std::isnan(got) ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << got;
  }
  const auto x_at = [&](int64_t k) { return x[static_cast<size_t>(k)]; };
  return Near(got, Dot(c, n, x_at, bias), dtype, activation);
}

void CheckLinear(const Case& c, int64_t x_rows, DType x_dtype, Activation activation,
                 const ParallelFor& parallel_for, bool odd = false) {
  SCOPED_TRACE(std::to_string(c.rows) + "x" + std::to_string(c.cols) + " r" +
               std::to_string(c.block_rows) + ", x_rows " + std::to_string(x_rows) + " " +
               Name(x_dtype));
  Elements x = RandomElements(x_dtype, x_rows * c.cols, 7);
  Elements y = RandomElements(x_dtype, x_rows * c.rows, 8);
  if (odd) {  // a row of zeros, one with an infinity, one with a NaN, one with tiny numbers
    for (int64_t k = 0; k < c.cols; ++k) x.Set(static_cast<size_t>(k), 0.0f);
    x.Set(static_cast<size_t>(1 * c.cols + c.cols / 2), std::numeric_limits<float>::infinity());
    x.Set(static_cast<size_t>(2 * c.cols + c.cols - 1), std::nanf(""));
    for (int64_t k = 0; k < c.cols; ++k) x.Set(static_cast<size_t>(3 * c.cols + k), 1e-40f);
  }
  const std::vector<float> bias = RandomFloats(c.rows, 9);
  LinearArgs args;
  args.x = x.data();
  args.y = y.data();
  args.dtype = x_dtype;
  args.x_rows = x_rows;
  args.x_stride = c.cols;
  args.y_stride = c.rows;
  args.epilogue = {bias.data(), activation};
  args.int8_x = true;
  const Status status = CsrLinear(c.Matrix(), args, parallel_for);
  ASSERT_TRUE(status.ok()) << status.message();
  for (int64_t m = 0; m < x_rows; ++m) {
    std::vector<double> row;
    for (int64_t k = 0; k < c.cols; ++k) row.push_back(x[static_cast<size_t>(m * c.cols + k)]);
    row = Quantized(row);
    for (int64_t n = 0; n < c.rows; ++n) {
      ASSERT_TRUE(NearOrNaN(y[static_cast<size_t>(m * c.rows + n)], c, n, row, bias.data(), x_dtype,
                            activation))
          << "at " << m << ", " << n;
    }
  }
}

void CheckConv2d(const Case& c, int64_t batch, int64_t size, int64_t stride, DType x_dtype) {
  SCOPED_TRACE(std::to_string(c.block_rows) + " rows a block, " + std::to_string(batch) + "x" +
               std::to_string(size) + " stride " + std::to_string(stride) + " " + Name(x_dtype));
  const int64_t out_size = (size + stride - 1) / stride;
  const Elements x = RandomElements(x_dtype, batch * c.cols * size * size, 3);
  Elements y = RandomElements(x_dtype, batch * c.rows * out_size * out_size, 4);
  CsrConv2dArgs args;
  args.x = x.data();
  args.y = y.data();
  args.dtype = x_dtype;
  args.batch = batch;
  args.height = size;
  args.width = size;
  args.stride = stride;
  args.epilogue = {nullptr, Activation::kRelu};
  args.int8_x = true;
  const Status status = CsrConv2d(c.Matrix(), args, Serial());
  ASSERT_TRUE(status.ok()) << status.message();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t pixel = 0; pixel < out_size * out_size; ++pixel) {
      const int64_t from = pixel / out_size * stride * size + pixel % out_size * stride;
      std::vector<double> row;
      for (int64_t k = 0; k < c.cols; ++k) {
        row.push_back(x[static_cast<size_t>((b * c.cols + k) * size * size + from)]);
      }
      row = Quantized(row);
      for (int64_t n = 0; n < c.rows; ++n) {
        const auto at = static_cast<size_t>((b * c.rows + n) * out_size * out_size + pixel);
        ASSERT_TRUE(NearOrNaN(y[at], c, n, row, nullptr, x_dtype, Activation::kRelu))
            << "image " << b << ", channel " << n << ", pixel " << pixel;
      }
    }
  }
}

class CsrInt8Test : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(CsrInt8Test, RowCounts) {
  const ForcedIsa forced(GetParam());
  for (const int r : {1, 2, 4}) {
    const Case c = MakeCase(75, 140, 0.2, DType::kI8, r);
    for (const int64_t x_rows : {1, 2, 4, 5, 16, 17, 32, 33, 64, 65, 100, 128, 129, 200}) {
      CheckLinear(c, x_rows, DType::kF32, Activation::kNone, Serial());
    }
  }
}

TEST_P(CsrInt8Test, ShapesAndDensities) {
  const ForcedIsa forced(GetParam());
  constexpr int64_t shapes[][2] = {{1, 1}, {1, 129}, {129, 1}, {16, 128}, {257, 40}, {33, 257}};
  for (const auto& shape : shapes) {
    for (const double density : {0.0, 0.1, 1.0}) {
      for (const int r : {1, 4}) {
        const Case c = MakeCase(shape[0], shape[1], density, DType::kI8, r);
        for (const int64_t x_rows : {1, 20, 70}) {
          CheckLinear(c, x_rows, DType::kF32, Activation::kNone, Serial());
        }
      }
    }
  }
}

TEST_P(CsrInt8Test, XTypesAndActivations) {
  const ForcedIsa forced(GetParam());
  const Case c = MakeCase(50, 130, 0.2, DType::kI8, 2);
  for (const DType x_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int a = 0; a <= 6; ++a) {
      for (const int64_t x_rows : {2, 35}) {
        CheckLinear(c, x_rows, x_dtype, static_cast<Activation>(a), Serial());
      }
    }
  }
}

TEST_P(CsrInt8Test, RowsThatAreZeroOrNotFinite) {
  const ForcedIsa forced(GetParam());
  const Case c = MakeCase(60, 200, 0.1, DType::kI8, 1);
  for (const int64_t x_rows : {4, 40}) {
    CheckLinear(c, x_rows, DType::kF32, Activation::kNone, Serial(), /*odd=*/true);
  }
}

TEST_P(CsrInt8Test, Conv2d) {
  const ForcedIsa forced(GetParam());
  for (const int r : {1, 2, 4}) {
    const Case c = MakeCase(37, 131, 0.15, DType::kI8, r);
    for (const int64_t stride : {1, 2}) {
      CheckConv2d(c, 1, 14, stride, DType::kF32);
      CheckConv2d(c, 3, 3, stride, DType::kBF16);
    }
  }
}

#if !defined(__wasm__)
TEST_P(CsrInt8Test, Threads) {
  const ForcedIsa forced(GetParam());
  ThreadPool pool(3);
  const Case c = MakeCase(530, 150, 0.05, DType::kI8, 1);
  for (const int64_t x_rows : {1, 40, 300}) {
    CheckLinear(c, x_rows, DType::kF32, Activation::kRelu, pool.parallel_for());
  }
}
#endif

// Sums of one sign, as large as they get: 255 * 127 * 4000 is beyond 24 bits and inside 32.
TEST_P(CsrInt8Test, LargeSums) {
  const ForcedIsa forced(GetParam());
  Case c = MakeCase(3, 4000, 1.0, DType::kI8, 1);
  std::fill(c.dense.bytes.begin(), c.dense.bytes.end(), uint8_t{127});
  std::fill(c.mask.begin(), c.mask.end(), uint8_t{1});
  Pack(&c);
  const std::vector<float> x(static_cast<size_t>(40 * c.cols), 2.0f);
  std::vector<float> y(static_cast<size_t>(40 * c.rows));
  LinearArgs args;
  args.x = x.data();
  args.y = y.data();
  args.x_rows = 40;
  args.x_stride = c.cols;
  args.y_stride = c.rows;
  args.int8_x = true;
  ASSERT_TRUE(CsrLinear(c.Matrix(), args, Serial()).ok());
  for (int64_t i = 0; i < 40 * c.rows; ++i) {
    const auto scale = static_cast<double>(c.scale[static_cast<size_t>(i % c.rows)]);
    const double want = 4000.0 * 127.0 * 2.0 * scale;
    EXPECT_NEAR(static_cast<double>(y[static_cast<size_t>(i)]), want, 1e-5 * want);
  }
}

TEST(CsrInt8ErrorTest, OtherValuesAreRefused) {
  const Case c = MakeCase(10, 12, 0.5, DType::kF32, 1);
  LinearArgs linear;
  linear.x_stride = 12;
  linear.y_stride = 10;
  linear.int8_x = true;
  CsrConv2dArgs conv2d;
  conv2d.int8_x = true;
  for (const Status& status :
       {CsrLinear(c.Matrix(), linear, Serial()), CsrConv2d(c.Matrix(), conv2d, Serial())}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidType);
    EXPECT_NE(status.message().find("int8_activations needs int8 values, got float32"),
              std::string::npos)
        << status.message();
  }
}

// A mask with dot products selects them, for batches and for int8 x only.
TEST(CsrInt8SelectionTest, ByTheBitOfTheDotProduct) {
  const Case c = MakeCase(20, 20, 0.5, DType::kI8, 2);
  const CsrMatrix w = c.Matrix();
#define SPARSEKERN_CSR_INT8_KERNELS(isa_flag, isa_suffix)                                    \
  {                                                                                          \
    const IsaMask mask = kScalar | isa_flag;                                                 \
    EXPECT_EQ(CsrLinearKernelName(w, 99, mask, true), "csr_linear_r2_i8_dot__" #isa_suffix); \
    EXPECT_EQ(CsrConv2dKernelName(w, mask, true), "csr_conv2d_r2_i8_dot__" #isa_suffix);     \
    EXPECT_EQ(CsrLinearKernelName(w, 99, mask, false), "csr_linear_r2_i8_batch__scalar");    \
    EXPECT_EQ(CsrLinearKernelName(w, 1, mask, true), "csr_linear_r2_i8_decode__scalar");     \
  }
#include "ops/csr_spmm/int8_kernels.inc"
#undef SPARSEKERN_CSR_INT8_KERNELS
  EXPECT_EQ(CsrLinearKernelName(w, 99, kScalar, true), "csr_linear_r2_i8_batch__scalar");
}

INSTANTIATE_TEST_SUITE_P(Isas, CsrInt8Test, ::testing::ValuesIn(RunnableInt8Isas()), IsaName);

}  // namespace
}  // namespace sparsekern::testing
