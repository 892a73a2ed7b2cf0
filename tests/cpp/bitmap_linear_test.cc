// SPDX-License-Identifier: Apache-2.0
// bitmap_linear on every kernel set: densities, dtypes, row counts and odd sizes against sums in
// double.
#include "sparsekern/bitmap_linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "csr_case.h"
#include "ops/bitmap_linear/kernels.h"

namespace sparsekern::testing {
namespace {

constexpr double kDensities[] = {0.0, 0.02, 0.3, 0.5, 0.9, 1.0};

std::vector<NamedIsa> BitmapIsas(bool runnable) {
  std::vector<NamedIsa> out;
#define SPARSEKERN_BITMAP_KERNELS(isa_flag, isa_suffix) out.push_back({#isa_suffix, isa_flag});
#include "ops/bitmap_linear/kernels.inc"
#undef SPARSEKERN_BITMAP_KERNELS
  if (runnable) {
    std::erase_if(out, [](const NamedIsa& isa) { return (DetectedIsa() & isa.isa) == 0; });
  }
  return out;
}

// A random matrix: dense with its mask as in csr_case.h, and packed as bitmap.
struct BitmapCase {
  Case dense;
  std::vector<uint8_t> structure;
  Elements values;

  BitmapMatrix Matrix() const {
    BitmapMatrix w;
    const Status status =
        ParseBitmapStructure(structure.data(), structure.size(), "test", &w.structure);
    EXPECT_TRUE(status.ok()) << status.message();
    w.values = values.data();
    w.dtype = dense.dense.dtype;
    w.scale = dense.scale.empty() ? nullptr : dense.scale.data();
    return w;
  }
};

BitmapCase MakeBitmapCase(int64_t rows, int64_t cols, double density, DType dtype) {
  BitmapCase c;
  c.dense = MakeCase(rows, cols, density, dtype, 1);
  BitmapPacker packer;
  const Status status = packer.Plan(c.dense.dense.data(), dtype, rows, cols, c.dense.mask.data());
  EXPECT_TRUE(status.ok()) << status.message();
  c.values = Zeros(dtype, packer.value_count());
  c.structure.assign(packer.structure_bytes(), 255);
  packer.Fill(c.values.data(), c.structure.data());
  return c;
}

struct Call {
  int64_t x_rows = 1;
  DType x_dtype = DType::kF32;
  Activation activation = Activation::kNone;
  bool bias = false;
  int64_t gap = 0;  // elements between rows of x, and of y
};

void Check(const BitmapCase& c, const Call& call, const ParallelFor& parallel_for) {
  const Case& d = c.dense;
  SCOPED_TRACE(std::to_string(d.rows) + "x" + std::to_string(d.cols) + " " + Name(d.dense.dtype) +
               ", x_rows " + std::to_string(call.x_rows) + " " + Name(call.x_dtype));
  const int64_t x_stride = d.cols + call.gap, y_stride = d.rows + call.gap;
  const Elements x = RandomElements(call.x_dtype, (call.x_rows - 1) * x_stride + d.cols, 7);
  Elements y = RandomElements(call.x_dtype, (call.x_rows - 1) * y_stride + d.rows, 8);
  const Elements before = y;
  const std::vector<float> bias = RandomFloats(d.rows, 9);
  LinearArgs args;
  args.x = x.data();
  args.y = y.data();
  args.dtype = call.x_dtype;
  args.x_rows = call.x_rows;
  args.x_stride = x_stride;
  args.y_stride = y_stride;
  args.epilogue = {call.bias ? bias.data() : nullptr, call.activation};
  const Status status = BitmapLinear(c.Matrix(), args, parallel_for);
  ASSERT_TRUE(status.ok()) << status.message();
  for (int64_t m = 0; m < call.x_rows; ++m) {
    for (int64_t n = 0; n < y_stride && (m + 1 < call.x_rows || n < d.rows); ++n) {
      const auto at = static_cast<size_t>(m * y_stride + n);
      if (n >= d.rows) {
        ASSERT_EQ(y[at], before[at]) << "written beyond row " << m;
        continue;
      }
      const auto x_at = [&](int64_t k) { return x[static_cast<size_t>(m * x_stride + k)]; };
      ASSERT_TRUE(Near(y[at], Dot(d, n, x_at, args.epilogue.bias), call.x_dtype, call.activation))
          << "at " << m << ", " << n;
    }
  }
}

class BitmapLinearTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(BitmapLinearTest, DensitiesAndDTypes) {
  const ForcedIsa forced(GetParam());
  for (const double density : kDensities) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
      const BitmapCase c = MakeBitmapCase(37, 160, density, dtype);
      SCOPED_TRACE(std::to_string(density));
      for (const int64_t x_rows : {1, 2, 5, 20}) Check(c, {.x_rows = x_rows}, Serial());
    }
  }
}

TEST_P(BitmapLinearTest, RowCounts) {
  const ForcedIsa forced(GetParam());
  const BitmapCase c = MakeBitmapCase(50, 150, 0.5, DType::kF32);
  for (const int64_t x_rows : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64, 65, 100, 129, 200}) {
    Check(c, {.x_rows = x_rows, .bias = true, .gap = 3}, Serial());
  }
}

TEST_P(BitmapLinearTest, Shapes) {
  const ForcedIsa forced(GetParam());
  constexpr int64_t shapes[][2] = {{1, 1},    {1, 129}, {129, 1}, {16, 128}, {257, 40},
                                   {33, 257}, {33, 63}, {15, 64}, {17, 65}};
  for (const auto& shape : shapes) {
    for (const double density : {0.1, 0.5, 1.0}) {
      const BitmapCase c = MakeBitmapCase(shape[0], shape[1], density, DType::kBF16);
      for (const int64_t x_rows : {1, 20, 70}) Check(c, {.x_rows = x_rows, .bias = true}, Serial());
    }
  }
}

TEST_P(BitmapLinearTest, XTypesAndActivations) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : {DType::kF32, DType::kI8}) {
    const BitmapCase c = MakeBitmapCase(150, 130, 0.5, dtype);
    for (const DType x_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (int a = 0; a <= 6; ++a) {
        for (const int64_t x_rows : {1, 35}) {
          Check(c, {x_rows, x_dtype, static_cast<Activation>(a), a % 2 == 0, 5}, Serial());
        }
      }
    }
  }
}

// A pruned weight contributes nothing, whatever x holds there; and nothing beyond x is read: the
// infinities and NaN next to it would show.
TEST_P(BitmapLinearTest, PrunedMeetsAnything) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
    BitmapCase c = MakeBitmapCase(40, 129, 0.5, dtype);
    Case& d = c.dense;
    // Column k keeps nothing where k % 3 != 0; there x is what must not be met.
    for (int64_t r = 0; r < d.rows; ++r) {
      for (int64_t k = 0; k < d.cols; ++k) {
        if (k % 3 != 0) d.mask[static_cast<size_t>(r * d.cols + k)] = 0;
      }
    }
    BitmapPacker packer;
    ASSERT_TRUE(packer.Plan(d.dense.data(), dtype, d.rows, d.cols, d.mask.data()).ok());
    c.values = Zeros(dtype, packer.value_count());
    c.structure.assign(packer.structure_bytes(), 0);
    packer.Fill(c.values.data(), c.structure.data());
    for (const int64_t x_rows : {1, 3, 40}) {
      std::vector<float> x(static_cast<size_t>(x_rows * 140), std::nanf(""));
      for (int64_t m = 0; m < x_rows; ++m) {
        for (int64_t k = 0; k < 129; ++k) {
          const float bad = k % 2 == 0 ? std::numeric_limits<float>::infinity() : std::nanf("");
          x[static_cast<size_t>(m * 140 + k)] = k % 3 == 0 ? 1.0f : bad;
        }
      }
      std::vector<float> y(static_cast<size_t>(x_rows * 40));
      LinearArgs args;
      args.x = x.data();
      args.y = y.data();
      args.x_rows = x_rows;
      args.x_stride = 140;
      args.y_stride = 40;
      ASSERT_TRUE(BitmapLinear(c.Matrix(), args, Serial()).ok());
      for (const float v : y) ASSERT_TRUE(std::isfinite(v)) << Name(dtype);
    }
  }
}

// A kept zero does meet the infinity.
TEST_P(BitmapLinearTest, KeptZeroTimesInfinity) {
  const ForcedIsa forced(GetParam());
  BitmapCase c = MakeBitmapCase(1, 70, 1.0, DType::kF32);
  c.dense.mask.assign(70, 1);
  std::vector<float> dense(70, 1.0f);
  dense[66] = 0.0f;
  BitmapPacker packer;
  ASSERT_TRUE(packer.Plan(dense.data(), DType::kF32, 1, 70, c.dense.mask.data()).ok());
  c.values = Zeros(DType::kF32, packer.value_count());
  packer.Fill(c.values.data(), c.structure.data());
  for (const int64_t x_rows : {1, 2, 40}) {
    std::vector<float> x(static_cast<size_t>(x_rows * 70), 1.0f);
    for (int64_t m = 0; m < x_rows; ++m) {
      x[static_cast<size_t>(m * 70 + 66)] = std::numeric_limits<float>::infinity();
    }
    std::vector<float> y(static_cast<size_t>(x_rows));
    LinearArgs args;
    args.x = x.data();
    args.y = y.data();
    args.x_rows = x_rows;
    args.x_stride = 70;
    args.y_stride = 1;
    ASSERT_TRUE(BitmapLinear(c.Matrix(), args, Serial()).ok());
    for (const float v : y) ASSERT_TRUE(std::isnan(v));
  }
}

// A dense product as BitmapLinearDense wants it, and what it was asked for.
struct DenseProduct {
  const Elements& x;
  int64_t x_rows, cols;
  std::vector<uint16_t> product = {};
  std::vector<int64_t> blocks = {};

  Status operator()(const BitmapDenseRows& block, const void** out) {
    blocks.push_back(block.rows);
    const auto* weights = static_cast<const uint16_t*>(block.weights);
    product.clear();
    for (int64_t m = 0; m < x_rows; ++m) {
      for (int64_t n = 0; n < block.rows; ++n) {
        float sum = 0.0f;
        for (int64_t k = 0; k < cols; ++k) {
          sum += static_cast<float>(x[static_cast<size_t>(m * cols + k)]) *
                 F32FromBF16(weights[n * block.stride + k]);
        }
        product.push_back(BF16FromF32(sum));
      }
    }
    *out = product.data();
    return Status::Ok();
  }
};

LinearArgs DenseArgs(const Case& d, const Elements& x, Elements* y) {
  LinearArgs args;
  args.x = x.data();
  args.y = y->data();
  args.dtype = DType::kBF16;
  args.x_rows = static_cast<int64_t>(x.size()) / d.cols;
  args.x_stride = d.cols;
  args.y_stride = d.rows;
  return args;
}

// Bit for bit what the same product makes of the dense matrix, block by block; the widest matrix
// takes two blocks, the last of which ends within a panel.
TEST_P(BitmapLinearTest, ByADenseProduct) {
  const ForcedIsa forced(GetParam());
  constexpr int64_t shapes[][2] = {{1, 1}, {37, 150}, {16, 64}, {70, 20000}};
  for (const auto& shape : shapes) {
    for (const double density : {0.0, 0.5, 1.0}) {
      if (shape[1] == 20000 && density != 0.5) continue;  // it takes long enough once
      const BitmapCase c = MakeBitmapCase(shape[0], shape[1], density, DType::kBF16);
      const Case& d = c.dense;
      const Elements x = RandomElements(DType::kBF16, 2 * d.cols, 7);
      Elements y = RandomElements(DType::kBF16, 2 * d.rows, 8);
      LinearArgs args = DenseArgs(d, x, &y);
      const std::vector<float> bias = RandomFloats(d.rows, 9);
      args.epilogue = {bias.data(), Activation::kRelu};
      DenseProduct multiply{x, 2, d.cols};
      const Status status =
          BitmapLinearDense(c.Matrix(), args, BitmapDenseProduct::Of(&multiply), Serial());
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(multiply.blocks.size(), d.cols == 20000 ? 2u : 1u);
      Elements dense = d.dense;
      for (size_t i = 0; i < dense.size(); ++i) {
        if (d.mask[i] == 0) dense.Set(i, 0.0f);
      }
      DenseProduct whole{x, 2, d.cols};
      const void* product = nullptr;
      ASSERT_TRUE(whole({dense.data(), d.rows, d.cols}, &product).ok());
      for (size_t i = 0; i < y.size(); ++i) {
        const float sum = F32FromBF16(whole.product[i]) + bias[i % static_cast<size_t>(d.rows)];
        const float want = F32FromBF16(BF16FromF32(std::max(sum, 0.0f)));
        ASSERT_EQ(y[i], static_cast<double>(want)) << d.rows << "x" << d.cols << " at " << i;
      }
    }
  }
}

TEST_P(BitmapLinearTest, ByADenseProductOnlyWhereXIsFinite) {
  const ForcedIsa forced(GetParam());
  BitmapCase c = MakeBitmapCase(20, 70, 0.5, DType::kBF16);
  for (const float value : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Elements x = RandomElements(DType::kBF16, 33 * 70, 7);
    x.Set(x.size() - 1, value);
    Elements y = Zeros(DType::kBF16, 33 * 20), want = y;
    DenseProduct multiply{x, 33, 70};
    ASSERT_TRUE(BitmapLinearDense(c.Matrix(), DenseArgs(c.dense, x, &y),
                                  BitmapDenseProduct::Of(&multiply), Serial())
                    .ok());
    EXPECT_TRUE(multiply.blocks.empty());
    ASSERT_TRUE(BitmapLinear(c.Matrix(), DenseArgs(c.dense, x, &want), Serial()).ok());
    EXPECT_EQ(y.bytes, want.bytes);
  }
  // What the product says is passed on; other types are refused.
  const Elements x = RandomElements(DType::kBF16, 70, 7);
  Elements y = Zeros(DType::kBF16, 20);
  const BitmapDenseProduct fails{
      [](void*, const BitmapDenseRows&, const void**) { return Status::OutOfMemory("m"); },
      nullptr};
  LinearArgs args = DenseArgs(c.dense, x, &y);
  EXPECT_EQ(BitmapLinearDense(c.Matrix(), args, fails, Serial()).code(), StatusCode::kOutOfMemory);
  args.dtype = DType::kF16;
  EXPECT_EQ(BitmapLinearDense(c.Matrix(), args, fails, Serial()).code(), StatusCode::kInvalidType);
}

// Bits that nobody validated give wrong numbers and never a wild access (AddressSanitizer).
TEST_P(BitmapLinearTest, AnyBitsAreSafe) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (const double density : {0.0, 0.3, 1.0}) {
      BitmapCase c = MakeBitmapCase(40, 150, density, dtype);
      Random random(3);
      const size_t bitmap = c.structure.size() - 3 * 3 * 16 * 8;
      for (size_t i = bitmap; i < c.structure.size(); ++i) {
        c.structure[i] = i % 3 == 0 ? 255 : static_cast<uint8_t>(random.Bits());
      }
      for (const int64_t x_rows : {1, 3, 40}) {
        const Elements x = RandomElements(DType::kF32, x_rows * 150, 1);
        Elements y = Zeros(DType::kF32, x_rows * 40);
        LinearArgs args;
        args.x = x.data();
        args.y = y.data();
        args.x_rows = x_rows;
        args.x_stride = 150;
        args.y_stride = 40;
        EXPECT_TRUE(BitmapLinear(c.Matrix(), args, Serial()).ok());
      }
      if (dtype != DType::kBF16) continue;
      const Elements x = RandomElements(DType::kBF16, 150, 1);
      Elements y = Zeros(DType::kBF16, 40);
      DenseProduct multiply{x, 1, 150};
      EXPECT_TRUE(BitmapLinearDense(c.Matrix(), DenseArgs(c.dense, x, &y),
                                    BitmapDenseProduct::Of(&multiply), Serial())
                      .ok());
    }
  }
}

// Whatever a kernel scales weights or x by on the way.
TEST_P(BitmapLinearTest, XOfAnyMagnitude) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
    const BitmapCase c = MakeBitmapCase(20, 70, 0.5, dtype);
    for (const int exponent : {-90, -60, 60, 66, 110}) {
      for (const int64_t x_rows : {1, 3}) {
        std::vector<float> x = RandomFloats(x_rows * 70, 7);
        for (float& v : x) v = std::ldexp(v, exponent);
        std::vector<float> y(static_cast<size_t>(x_rows * 20));
        LinearArgs args;
        args.x = x.data();
        args.y = y.data();
        args.x_rows = x_rows;
        args.x_stride = 70;
        args.y_stride = 20;
        ASSERT_TRUE(BitmapLinear(c.Matrix(), args, Serial()).ok());
        for (int64_t m = 0; m < x_rows; ++m) {
          for (int64_t n = 0; n < 20; ++n) {
            const Sum want = Dot(
                c.dense, n, [&](int64_t k) { return x[static_cast<size_t>(m * 70 + k)]; }, nullptr);
            ASSERT_NEAR(y[static_cast<size_t>(m * 20 + n)], want.value, 1e-5 * want.magnitude)
                << Name(dtype) << " 2^" << exponent << " at " << m << ", " << n;
          }
        }
      }
    }
  }
}

#if !defined(__wasm__)
TEST_P(BitmapLinearTest, Threads) {
  const ForcedIsa forced(GetParam());
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    const BitmapCase c = MakeBitmapCase(530, 150, 0.5, DType::kF32);
    for (const int64_t x_rows : {1, 7, 40, 150, 300}) {
      Check(c, {.x_rows = x_rows, .bias = true}, pool.parallel_for());
    }
  }
}
#endif

TEST(BitmapLinearErrorTest, ArgumentsAreChecked) {
  const BitmapCase c = MakeBitmapCase(10, 12, 0.5, DType::kF32);
  LinearArgs good;
  good.x_stride = 12;
  good.y_stride = 10;
  ASSERT_TRUE(BitmapLinear(c.Matrix(), good, Serial()).ok());  // no rows: nothing to do
  const auto code = [&](auto change) {
    BitmapMatrix w = c.Matrix();
    LinearArgs args = good;
    change(w, args);
    const Status status = BitmapLinear(w, args, Serial());
    EXPECT_EQ(status.message().rfind("bitmap_linear: ", 0), 0u) << status.message();
    return status.code();
  };
  using W = BitmapMatrix&;
  using A = LinearArgs&;
  EXPECT_EQ(code([](W, A a) { a.dtype = DType::kI8; }), StatusCode::kInvalidType);
  EXPECT_EQ(code([](W w, A) { w.dtype = static_cast<DType>(9); }), StatusCode::kInvalidType);
  EXPECT_EQ(code([](W w, A) { w.dtype = DType::kI8; }), StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.x_stride = 11; }), StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.y_stride = 9; }), StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.x_rows = -1; }), StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.epilogue.activation = static_cast<Activation>(7); }),
            StatusCode::kInvalidValue);
  EXPECT_EQ(code([](W, A a) { a.int8_x = true; }), StatusCode::kInvalidValue);
}

TEST(BitmapSelectionTest, ByTheBitOfTheSet) {
  const BitmapCase c = MakeBitmapCase(20, 20, 0.5, DType::kBF16);
  for (const NamedIsa& isa : BitmapIsas(false)) {
    const std::string ending = std::string("__") + isa.name;
    const BitmapMatrix w = c.Matrix();
    EXPECT_EQ(BitmapLinearKernelName(w, 1, kScalar | isa.isa),
              "bitmap_linear_bf16_decode" + ending);
    EXPECT_EQ(BitmapLinearKernelName(w, 1000, kScalar | isa.isa),
              "bitmap_linear_bf16_batch" + ending);
  }
}

TEST(BitmapSelectionTest, DenseProductsWithAmxOnly) {
  const auto prefers = [](DType values, DType x, int64_t x_rows, IsaMask mask) {
    BitmapMatrix w;
    w.dtype = values;
    LinearArgs args;
    args.dtype = x;
    args.x_rows = x_rows;
    return BitmapPrefersDense(w, args, mask);
  };
  IsaMask amx = 0, bf16 = 0;
  ASSERT_TRUE(IsaFromNameUnchecked("amxbf16", &amx).ok());
  ASSERT_TRUE(IsaFromNameUnchecked("avx512bf16", &bf16).ok());
  EXPECT_TRUE(prefers(DType::kBF16, DType::kBF16, 32, amx));
  EXPECT_FALSE(prefers(DType::kBF16, DType::kBF16, 31, amx));
  EXPECT_FALSE(prefers(DType::kBF16, DType::kF32, 32, amx));
  EXPECT_FALSE(prefers(DType::kF16, DType::kBF16, 32, amx));
  EXPECT_FALSE(prefers(DType::kBF16, DType::kBF16, 1000, bf16));
}

INSTANTIATE_TEST_SUITE_P(Isas, BitmapLinearTest, ::testing::ValuesIn(BitmapIsas(true)), IsaName);

}  // namespace
}  // namespace sparsekern::testing
