// SPDX-License-Identifier: Apache-2.0
// nm_linear on every kernel set: all windows, dtypes, row counts and odd sizes against sums in
// double.
#include "sparsekern/nm_linear.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "csr_case.h"
#include "ops/nm_linear/kernels.h"

namespace sparsekern::testing {
namespace {

struct Ratio {
  int n, m;
};
constexpr Ratio kRatios[] = {{1, 2}, {1, 4},  {2, 4},  {3, 4},   {1, 8},  {2, 8},  {4, 8},
                             {7, 8}, {1, 16}, {4, 16}, {15, 16}, {1, 32}, {5, 32}, {31, 32}};

std::vector<NamedIsa> NmIsas(bool runnable) {
  std::vector<NamedIsa> out;
#define SPARSEKERN_NM_KERNELS(isa_flag, isa_suffix) out.push_back({#isa_suffix, isa_flag});
#include "ops/nm_linear/kernels.inc"
#undef SPARSEKERN_NM_KERNELS
  if (runnable) {
    std::erase_if(out, [](const NamedIsa& isa) { return (DetectedIsa() & isa.isa) == 0; });
  }
  return out;
}

// A random N:M matrix: dense with its mask as in csr_case.h, and packed as nm.
struct NmCase {
  Case dense;
  std::vector<uint8_t> structure;
  Elements values;

  NmMatrix Matrix() const {
    NmMatrix w;
    const Status status =
        ParseNmStructure(structure.data(), structure.size(), "test", &w.structure);
    EXPECT_TRUE(status.ok()) << status.message();
    w.values = values.data();
    w.dtype = dense.dense.dtype;
    w.scale = dense.scale.empty() ? nullptr : dense.scale.data();
    return w;
  }
};

NmCase MakeNmCase(int64_t rows, int64_t cols, Ratio ratio, DType dtype, uint64_t seed = 1) {
  NmCase c;
  c.dense.rows = rows;
  c.dense.cols = cols;
  c.dense.dense = RandomElements(dtype, rows * cols, seed);
  c.dense.mask.assign(static_cast<size_t>(rows * cols), 0);
  Random random(seed + 1);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < cols; g += ratio.m) {
      // One group in eight keeps less than it may.
      int left = random.Below(8) == 0 ? random.Below(ratio.n + 1) : ratio.n;
      for (int tries = 0; left > 0 && tries < 400; ++tries) {
        const int64_t k = g + random.Below(ratio.m);
        uint8_t* kept = k < cols ? &c.dense.mask[static_cast<size_t>(r * cols + k)] : nullptr;
        if (kept == nullptr || *kept != 0) continue;
        *kept = 1;
        --left;
      }
    }
  }
  if (dtype == DType::kI8) {
    for (int64_t r = 0; r < rows; ++r) {
      c.dense.scale.push_back(0.001f + 0.01f * static_cast<float>(random.Uniform()));
    }
  }
  NmPacker packer;
  const Status status =
      packer.Plan(c.dense.dense.data(), dtype, rows, cols, ratio.n, ratio.m, c.dense.mask.data());
  EXPECT_TRUE(status.ok()) << status.message();
  c.values = Zeros(dtype, packer.value_count());
  c.structure.assign(packer.structure_bytes(), 0);
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

void Check(const NmCase& c, const Call& call, const ParallelFor& parallel_for) {
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
  const Status status = NmLinear(c.Matrix(), args, parallel_for);
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

class NmLinearTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(NmLinearTest, RatiosAndDTypes) {
  const ForcedIsa forced(GetParam());
  for (const Ratio& ratio : kRatios) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
      const NmCase c = MakeNmCase(37, 160, ratio, dtype);
      SCOPED_TRACE(std::to_string(ratio.n) + " of " + std::to_string(ratio.m));
      for (const int64_t x_rows : {1, 2, 3, 20}) Check(c, {.x_rows = x_rows}, Serial());
    }
  }
}

TEST_P(NmLinearTest, RowCounts) {
  const ForcedIsa forced(GetParam());
  const NmCase c = MakeNmCase(50, 150, {2, 8}, DType::kF32);
  for (const int64_t x_rows : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64, 65, 100, 129, 200}) {
    Check(c, {.x_rows = x_rows, .bias = true, .gap = 3}, Serial());
  }
}

TEST_P(NmLinearTest, Shapes) {
  const ForcedIsa forced(GetParam());
  constexpr int64_t shapes[][2] = {{1, 1}, {1, 129}, {129, 1}, {16, 128}, {257, 40}, {33, 257}};
  for (const auto& shape : shapes) {
    for (const Ratio& ratio : {Ratio{1, 2}, Ratio{2, 4}, Ratio{3, 8}, Ratio{1, 16}, Ratio{2, 32}}) {
      const NmCase c = MakeNmCase(shape[0], shape[1], ratio, DType::kBF16);
      for (const int64_t x_rows : {1, 20, 70}) Check(c, {.x_rows = x_rows, .bias = true}, Serial());
    }
  }
}

// Few weights and many columns: narrower tiles and wider blocks than elsewhere.
TEST_P(NmLinearTest, SparseAndWide) {
  const ForcedIsa forced(GetParam());
  for (const Ratio& ratio : {Ratio{1, 16}, Ratio{2, 32}}) {
    const NmCase c = MakeNmCase(35, 4001, ratio, DType::kF32);
    for (const int64_t x_rows : {20, 70, 129}) {
      Check(c, {.x_rows = x_rows, .bias = true}, Serial());
    }
  }
}

TEST_P(NmLinearTest, XTypesAndActivations) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : {DType::kF32, DType::kI8}) {
    const NmCase c = MakeNmCase(150, 130, {2, 4}, dtype);
    for (const DType x_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (int a = 0; a <= 6; ++a) {
        for (const int64_t x_rows : {1, 35}) {
          Check(c, {x_rows, x_dtype, static_cast<Activation>(a), a % 2 == 0, 5}, Serial());
        }
      }
    }
  }
}

// Neither the slots beyond cols nor those of rows that do not exist may read what is not there: an
// infinity or NaN next to x would show.
TEST_P(NmLinearTest, NothingBeyondXIsRead) {
  const ForcedIsa forced(GetParam());
  const NmCase c = MakeNmCase(20, 129, {1, 32}, DType::kF32);
  for (const int64_t x_rows : {1, 40}) {
    std::vector<float> x(static_cast<size_t>(x_rows * 140), std::nanf(""));
    for (int64_t m = 0; m < x_rows; ++m) {
      for (int64_t k = 0; k < 129; ++k) x[static_cast<size_t>(m * 140 + k)] = 1.0f;
    }
    std::vector<float> y(static_cast<size_t>(x_rows * 20));
    LinearArgs args;
    args.x = x.data();
    args.y = y.data();
    args.x_rows = x_rows;
    args.x_stride = 140;
    args.y_stride = 20;
    ASSERT_TRUE(NmLinear(c.Matrix(), args, Serial()).ok());
    for (const float v : y) ASSERT_TRUE(std::isfinite(v));
  }
}

// Words that nobody validated give wrong numbers and never a wild access (AddressSanitizer).
TEST_P(NmLinearTest, AnyIndexIsSafe) {
  const ForcedIsa forced(GetParam());
  for (const Ratio& ratio : kRatios) {
    NmCase c = MakeNmCase(40, 150, ratio, DType::kF32);
    Random random(3);
    for (size_t i = 64; i < c.structure.size(); ++i) {
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
      EXPECT_TRUE(NmLinear(c.Matrix(), args, Serial()).ok());
    }
  }
}

#if !defined(__wasm__)
TEST_P(NmLinearTest, Threads) {
  const ForcedIsa forced(GetParam());
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    const NmCase c = MakeNmCase(530, 150, {2, 8}, DType::kF32);
    for (const int64_t x_rows : {1, 7, 40, 150, 300}) {
      Check(c, {.x_rows = x_rows, .bias = true}, pool.parallel_for());
    }
  }
}
#endif

TEST(NmLinearErrorTest, ArgumentsAreChecked) {
  const NmCase c = MakeNmCase(10, 12, {2, 4}, DType::kF32);
  LinearArgs good;
  good.x_stride = 12;
  good.y_stride = 10;
  ASSERT_TRUE(NmLinear(c.Matrix(), good, Serial()).ok());  // no rows: nothing to do
  const auto code = [&](auto change) {
    NmMatrix w = c.Matrix();
    LinearArgs args = good;
    change(w, args);
    const Status status = NmLinear(w, args, Serial());
    EXPECT_EQ(status.message().rfind("nm_linear: ", 0), 0u) << status.message();
    return status.code();
  };
  using W = NmMatrix&;
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

TEST(NmSelectionTest, ByTheBitOfTheSet) {
  const NmCase c = MakeNmCase(20, 20, {1, 16}, DType::kBF16);
  for (const NamedIsa& isa : NmIsas(false)) {
    const std::string ending = std::string("__") + isa.name;
    const NmMatrix w = c.Matrix();
    EXPECT_EQ(NmLinearKernelName(w, 1, kScalar | isa.isa), "nm_linear_1of16_bf16_decode" + ending);
    EXPECT_EQ(NmLinearKernelName(w, 1000, kScalar | isa.isa),
              "nm_linear_1of16_bf16_batch" + ending);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, NmLinearTest, ::testing::ValuesIn(NmIsas(true)), IsaName);

}  // namespace
}  // namespace sparsekern::testing
