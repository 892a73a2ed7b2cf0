// SPDX-License-Identifier: Apache-2.0
// gqs_linear on every kernel set against sums in double.
#include "sparsekern/gqs_linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <limits>

#include "gqs_case.h"
#include "ops/gqs_linear/kernels.h"

namespace sparsekern::testing {
namespace {

std::vector<NamedIsa> GqsIsas(bool runnable) {
  std::vector<NamedIsa> out;
#define SPARSEKERN_GQS_KERNELS(isa_flag, isa_suffix) out.push_back({#isa_suffix, isa_flag});
#include "ops/gqs_linear/kernels.inc"
#undef SPARSEKERN_GQS_KERNELS
  if (runnable) {
    std::erase_if(out, [](const NamedIsa& isa) { return (DetectedIsa() & isa.isa) == 0; });
  }
  return out;
}

// And those with integer products, on top of what else there is: it says up to how many rows of x.
std::vector<NamedIsa> WithInt8Isas() {
  std::vector<NamedIsa> out = GqsIsas(true);
#define SPARSEKERN_GQS_INT8_KERNELS(isa_flag, isa_suffix)   \
  if ((DetectedIsa() & isa_flag) != 0) {                    \
    const IsaMask base = DetectedIsa() & (kAvx512 | kNeon); \
    out.push_back({#isa_suffix, base | isa_flag});          \
  }
#include "ops/gqs_linear/int8_kernels.inc"
#undef SPARSEKERN_GQS_INT8_KERNELS
  return out;
}

// x as int8_x has the kernels see it: multiples of each group's largest magnitude / 127.
Elements Rounded(const GqsCase& c, const Elements& x, int64_t x_rows, int64_t x_stride) {
  Elements out = RandomElements(DType::kF32, (x_rows - 1) * x_stride + c.cols, 1);
  for (int64_t m = 0; m < x_rows; ++m) {
    for (int64_t first = 0; first < c.cols; first += c.kind.group) {
      const int64_t begin = m * x_stride + first;
      const int64_t end = begin + std::min<int64_t>(c.kind.group, c.cols - first);
      float most = 0;
      bool finite = true;
      for (int64_t i = begin; i < end; ++i) {
        const double v = x[static_cast<size_t>(i)];
        finite = finite && std::isfinite(v);
        most = std::max(most, std::fabs(static_cast<float>(v)));
      }
      const float inverse = most > 0x1p-100f ? 127.0f / most : 0.0f;
      for (int64_t i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        const float code = std::nearbyintf(static_cast<float>(x[at]) * inverse);
        out.Set(at, finite ? code * (most / 127.0f) : std::nanf(""));
      }
    }
  }
  return out;
}

struct Call {
  int64_t x_rows = 1;
  DType x_dtype = DType::kF32;
  Activation activation = Activation::kNone;
  bool bias = false;
  int64_t gap = 0;  // elements between rows of x, and of y
  bool int8_x = false;
};

Elements Product(const GqsCase& c, const Call& call, const Elements& x,
                 const std::vector<float>& bias, const ParallelFor& parallel_for) {
  LinearArgs args;
  Elements y = RandomElements(call.x_dtype, (call.x_rows - 1) * (c.rows + call.gap) + c.rows, 8);
  args.x = x.data();
  args.y = y.data();
  args.dtype = call.x_dtype;
  args.x_rows = call.x_rows;
  args.x_stride = c.cols + call.gap;
  args.y_stride = c.rows + call.gap;
  args.int8_x = call.int8_x;
  args.epilogue = {call.bias ? bias.data() : nullptr, call.activation};
  const Status status = GqsLinear(c.Matrix(), args, parallel_for);
  EXPECT_TRUE(status.ok()) << status.message();
  return y;
}

void Check(const GqsCase& c, const Call& call, const ParallelFor& parallel_for = Serial()) {
  SCOPED_TRACE(Text(c.kind) + " " + std::to_string(c.rows) + "x" + std::to_string(c.cols) +
               ", x_rows " + std::to_string(call.x_rows) + " " + Name(call.x_dtype));
  const int64_t x_stride = c.cols + call.gap, y_stride = c.rows + call.gap;
  const Elements x = RandomElements(call.x_dtype, (call.x_rows - 1) * x_stride + c.cols, 7);
  const std::vector<float> bias = RandomFloats(c.rows, 9);
  const Elements before = RandomElements(call.x_dtype, (call.x_rows - 1) * y_stride + c.rows, 8);
  const Elements y = Product(c, call, x, bias, parallel_for);
  const Elements seen = call.int8_x ? Rounded(c, x, call.x_rows, x_stride) : x;
  for (int64_t m = 0; m < call.x_rows; ++m) {
    for (int64_t n = 0; n < y_stride && (m + 1 < call.x_rows || n < c.rows); ++n) {
      const auto at = static_cast<size_t>(m * y_stride + n);
      if (n >= c.rows) {
        ASSERT_EQ(y[at], before[at]) << "written beyond row " << m;
        continue;
      }
      Sum sum;
      for (int64_t k = 0; k < c.cols; ++k) {
        const double w = c.weight[static_cast<size_t>(n * c.cols + k)];
        if (w != 0) sum.Add(w * seen[static_cast<size_t>(m * x_stride + k)]);
      }
      if (call.bias) sum.Add(static_cast<double>(bias[static_cast<size_t>(n)]));
      ASSERT_TRUE(Near(y[at], sum, call.x_dtype, call.activation)) << "at " << m << ", " << n;
    }
  }
}

class GqsLinearTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(GqsLinearTest, KindsAndRowCounts) {
  const ForcedIsa forced(GetParam());
  for (const int bits : {2, 4, 8}) {
    for (const int group : {16, 32, 64, 128}) {
      for (const bool zeros : {false, true}) {
        const GqsScale scale = group == 32 ? GqsScale::kBF16 : GqsScale::kF16;
        const GqsCase c = MakeGqsCase(37, 400, {bits, group, scale, zeros}, 0.5);
        for (const int64_t x_rows : {1, 2, 3, 4, 7, 16, 40}) Check(c, {.x_rows = x_rows});
      }
    }
  }
}

TEST_P(GqsLinearTest, Scales) {
  const ForcedIsa forced(GetParam());
  for (const GqsScale scale : {GqsScale::kF32, GqsScale::kBF16, GqsScale::kF16, GqsScale::kU8}) {
    const GqsCase c = MakeGqsCase(70, 333, {4, 16, scale}, 0.4);
    for (const int64_t x_rows : {1, 5, 33}) Check(c, {.x_rows = x_rows, .bias = true, .gap = 3});
  }
}

TEST_P(GqsLinearTest, Shapes) {
  const ForcedIsa forced(GetParam());
  constexpr int64_t shapes[][2] = {{1, 1}, {1, 129}, {129, 1}, {64, 128}, {200, 40}, {3, 5000}};
  for (const auto& shape : shapes) {
    for (const double density : {0.0, 0.3, 1.0}) {
      const GqsCase c = MakeGqsCase(shape[0], shape[1], {4, 16, GqsScale::kF16}, density);
      for (const int64_t x_rows : {1, 6, 20, 70}) Check(c, {.x_rows = x_rows, .bias = true});
    }
  }
}

TEST_P(GqsLinearTest, XTypesAndActivations) {
  const ForcedIsa forced(GetParam());
  const GqsCase c = MakeGqsCase(60, 130, {4, 16, GqsScale::kF16, true});
  for (const DType x_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int a = 0; a <= 6; ++a) {
      for (const int64_t x_rows : {1, 35}) {
        Check(c, {x_rows, x_dtype, static_cast<Activation>(a), a % 2 == 0, 5});
      }
    }
  }
}

#if !defined(__wasm__)  // no threads
// A row so long that it spans tasks is summed in pieces that do not depend on the threads.
void CheckThreads(std::initializer_list<int64_t> rows_of_x, bool int8_x) {
  ThreadPool pool(3);
  for (const int group : {16, 128}) {
    const GqsCase c = MakeGqsCase(9, 40000, {4, group, GqsScale::kF16}, 0.9);
    ASSERT_GT(c.Matrix().structure.tasks, c.rows);
    for (const int64_t x_rows : rows_of_x) {
      const Call call{.x_rows = x_rows, .int8_x = int8_x};
      Check(c, call, pool.parallel_for());
      const Elements x = RandomElements(DType::kF32, x_rows * c.cols, 7);
      EXPECT_EQ(Product(c, call, x, {}, Serial()).bytes,
                Product(c, call, x, {}, pool.parallel_for()).bytes);
    }
  }
}

TEST_P(GqsLinearTest, SameSumsWhateverTheThreads) {
  const ForcedIsa forced(GetParam());
  CheckThreads({1, 3}, false);
}
#endif

// What is pruned takes no part, even where x is not finite; what is beyond the columns is not read.
TEST_P(GqsLinearTest, NonFiniteX) {
  const ForcedIsa forced(GetParam());
  GqsCase c = MakeGqsCase(40, 144, {4, 16, GqsScale::kF16}, 0.5);
  for (const int64_t x_rows : {1, 40}) {
    const int64_t stride = 150;
    std::vector<float> x(static_cast<size_t>(x_rows * stride), std::nanf(""));
    for (int64_t m = 0; m < x_rows; ++m) {
      for (int64_t k = 0; k < 144; ++k) x[static_cast<size_t>(m * stride + k)] = 1.0f;
      x[static_cast<size_t>(m * stride + 35)] = std::numeric_limits<float>::infinity();
    }
    std::vector<float> y(static_cast<size_t>(x_rows * 40));
    LinearArgs args;
    args.x = x.data();
    args.y = y.data();
    args.x_rows = x_rows;
    args.x_stride = stride;
    args.y_stride = 40;
    ASSERT_TRUE(GqsLinear(c.Matrix(), args, Serial()).ok());
    for (size_t i = 0; i < y.size(); ++i) {
      const bool kept = c.mask[i % 40 * 9 + 2] != 0;
      ASSERT_EQ(std::isfinite(y[i]), !kept) << i;
    }
  }
}

// Masks and values that nobody validated give wrong numbers and never a wild access
// (AddressSanitizer).
TEST_P(GqsLinearTest, AnyMaskIsSafe) {
  const ForcedIsa forced(GetParam());
  for (const GqsKind& kind : {GqsKind{4, 16}, GqsKind{2, 128}, GqsKind{8, 32}}) {
    GqsCase c = MakeGqsCase(40, 300, kind);
    const GqsMatrix w = c.Matrix();
    const auto at = static_cast<size_t>(w.structure.mask - c.structure.data());
    Random random(5);
    for (const int fill : {0x00, 0xff, -1}) {
      for (size_t i = 0; i < static_cast<size_t>(2 * c.rows * w.structure.words); ++i) {
        c.structure[at + i] = static_cast<uint8_t>(fill < 0 ? random.Below(256) : fill);
      }
      for (const int64_t x_rows : {1, 3, 40}) {
        const Elements x = RandomElements(DType::kF32, x_rows * c.cols, 7);
        static_cast<void>(Product(c, {.x_rows = x_rows}, x, {}, Serial()));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, GqsLinearTest, ::testing::ValuesIn(GqsIsas(true)), IsaName);

class GqsInt8Test : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(GqsInt8Test, KindsAndRowCounts) {
  const ForcedIsa forced(GetParam());
  for (const int bits : {2, 4, 8}) {
    for (const int group : {16, 32, 64, 128}) {
      for (const bool zeros : {false, true}) {
        const GqsCase c = MakeGqsCase(21, 300, {bits, group, GqsScale::kF16, zeros}, 0.5);
        for (const int64_t x_rows : {2, 4, 7, 16, 33}) {
          Check(c, {.x_rows = x_rows, .bias = true, .gap = 3, .int8_x = true});
        }
      }
    }
  }
}

TEST_P(GqsInt8Test, Shapes) {
  const ForcedIsa forced(GetParam());
  constexpr int64_t shapes[][2] = {{1, 1}, {1, 129}, {129, 1}, {200, 40}, {3, 5000}};
  for (const auto& shape : shapes) {
    for (const double density : {0.0, 0.3, 1.0}) {
      const GqsCase c = MakeGqsCase(shape[0], shape[1], {4, 16, GqsScale::kU8}, density);
      for (const int64_t x_rows : {4, 11, 16}) {
        Check(c, {.x_rows = x_rows, .x_dtype = DType::kBF16, .int8_x = true});
      }
    }
  }
}

// Columns in several pieces, which sixteen rows of x are taken in: rows of W that keep nothing,
// all, or only groups of one piece; more rows than a run has parts.
TEST_P(GqsInt8Test, ManyColumns) {
  const ForcedIsa forced(GetParam());
  for (const GqsKind& kind : {GqsKind{4, 16}, GqsKind{2, 32, GqsScale::kBF16},
                              GqsKind{8, 64, GqsScale::kF16}, GqsKind{4, 128}}) {
    constexpr int64_t kRows = 24, kCols = 3109;
    for (const double density : {0.02, 0.5, 1.0}) {
      const GqsCase c =
          MakeGqsCase(kRows, kCols, kind, density, 1, [](int64_t row, int64_t column) {
            if (row % 6 == 0) return false;
            if (row % 6 == 1) return column < 1100;
            if (row % 6 == 2) return column >= 2800;
            return row % 6 != 3 || (column >= 1500 && column < 2000);
          });
      for (const int64_t x_rows : {5, 16}) Check(c, {.x_rows = x_rows, .int8_x = true});
    }
  }
  const GqsCase c = MakeGqsCase(700, 40, {4, 16, GqsScale::kF16}, 0.4);
  Check(c, {.x_rows = 9, .int8_x = true});
}

#if !defined(__wasm__)  // no threads
TEST_P(GqsInt8Test, SameSumsWhateverTheThreads) {
  const ForcedIsa forced(GetParam());
  CheckThreads({3, 9}, true);
}
#endif

// What is not finite is NaN for the rows of W that keep its group, in its row of x, and there only.
TEST_P(GqsInt8Test, NotFiniteStaysInItsGroup) {
  const ForcedIsa forced(GetParam());
  for (const bool zeros : {false, true}) {
    const GqsCase c = MakeGqsCase(50, 90, {4, 16, GqsScale::kF16, zeros}, 0.5);
    for (const int64_t at : {37, 85}) {  // the latter in a group that the columns end in
      for (const float odd : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
        for (const int64_t x_rows : {4, 6}) {
          Elements x = RandomElements(DType::kF32, x_rows * c.cols, 7);
          x.Set(static_cast<size_t>(1 * c.cols + at), odd);
          const Elements y = Product(c, {.x_rows = x_rows, .int8_x = true}, x, {}, Serial());
          for (int64_t m = 0; m < x_rows; ++m) {
            for (int64_t n = 0; n < c.rows; ++n) {
              const bool kept = c.mask[static_cast<size_t>(n * c.RowGroups() + at / 16)] != 0;
              EXPECT_EQ(std::isnan(y[static_cast<size_t>(m * c.rows + n)]), m == 1 && kept)
                  << m << ", " << n;
            }
          }
        }
      }
    }
  }
}

// As GqsLinearTest.AnyMaskIsSafe.
TEST_P(GqsInt8Test, AnyMaskIsSafe) {
  const ForcedIsa forced(GetParam());
  for (const GqsKind& kind : {GqsKind{4, 16}, GqsKind{2, 128}, GqsKind{8, 128}}) {
    GqsCase c = MakeGqsCase(40, 3000, kind);
    const GqsMatrix w = c.Matrix();
    const auto at = static_cast<size_t>(w.structure.mask - c.structure.data());
    Random random(5);
    for (size_t i = 0; i < static_cast<size_t>(2 * c.rows * w.structure.words); ++i) {
      c.structure[at + i] = static_cast<uint8_t>(random.Below(256));
    }
    for (const int64_t x_rows : {2, 4, 7, 16, 40}) {
      const Elements x = RandomElements(DType::kF32, x_rows * c.cols, 7);
      static_cast<void>(Product(c, {.x_rows = x_rows, .int8_x = true}, x, {}, Serial()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, GqsInt8Test, ::testing::ValuesIn(WithInt8Isas()), IsaName);

TEST(GqsLinear, SelectsByMask) {
  const GqsCase c = MakeGqsCase(20, 64, {4, 16, GqsScale::kF16});
  for (const NamedIsa& isa : GqsIsas(false)) {
    const std::string name = GqsLinearKernelName(c.Matrix(), 1, kScalar | isa.isa);
    EXPECT_EQ(name, std::string("gqs_linear_w4g16_decode__") + isa.name);
    EXPECT_EQ(GqsLinearKernelName(c.Matrix(), 1000, kScalar | isa.isa),
              std::string("gqs_linear_w4g16_batch__") + isa.name);
  }
#define SPARSEKERN_GQS_INT8_KERNELS(isa_flag, isa_suffix)                 \
  EXPECT_EQ(GqsLinearKernelName(c.Matrix(), 4, kScalar | isa_flag, true), \
            "gqs_linear_w4g16_dot__" #isa_suffix);                        \
  EXPECT_EQ(GqsLinearKernelName(c.Matrix(), 4, kScalar | isa_flag),       \
            "gqs_linear_w4g16_decode__scalar");                           \
  EXPECT_EQ(GqsLinearKernelName(c.Matrix(), 2, kScalar | isa_flag, true), \
            "gqs_linear_w4g16_decode__scalar");
#include "ops/gqs_linear/int8_kernels.inc"
#undef SPARSEKERN_GQS_INT8_KERNELS
}

TEST(GqsLinear, Refuses) {
  const GqsCase c = MakeGqsCase(20, 64, {4, 16, GqsScale::kF16});
  std::vector<float> x(64), y(20);
  LinearArgs args;
  args.x = x.data();
  args.y = y.data();
  args.x_rows = 1;
  args.x_stride = 64;
  args.y_stride = 20;
  GqsMatrix w = c.Matrix();
  EXPECT_TRUE(GqsLinear(w, args, Serial()).ok());
  args.x_stride = 63;
  EXPECT_EQ(GqsLinear(w, args, Serial()).code(), StatusCode::kInvalidValue);
  args.x_stride = 64;
  w.kind = GqsScale::kU8;
  EXPECT_EQ(GqsLinear(w, args, Serial()).code(), StatusCode::kInvalidType);
}

}  // namespace
}  // namespace sparsekern::testing
