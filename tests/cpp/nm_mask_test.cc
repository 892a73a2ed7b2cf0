// SPDX-License-Identifier: Apache-2.0
// Every kernel set against sorting each group, on values full of ties and special cases.
#include "sparsekern/nm_mask.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "csr_case.h"
#include "ops/nm_mask/kernels.h"

namespace sparsekern::testing {
namespace {

std::vector<NamedIsa> CompiledNmIsas() {
  std::vector<NamedIsa> out;
#define SPARSEKERN_NM_MASK_KERNELS(isa_flag, isa_suffix) out.push_back({#isa_suffix, isa_flag});
#include "ops/nm_mask/kernels.inc"
#undef SPARSEKERN_NM_MASK_KERNELS
  return out;
}

std::vector<NamedIsa> RunnableNmIsas() {
  std::vector<NamedIsa> out;
  for (const NamedIsa& isa : CompiledNmIsas()) {
    if ((DetectedIsa() & isa.isa) != 0) out.push_back(isa);
  }
  return out;
}

// Scores of a dtype, and the numbers that they are.
struct Scores {
  DType dtype;
  std::vector<uint8_t> bytes;
  std::vector<float> numbers;
};

Scores MakeScores(DType dtype, int64_t count, uint64_t seed) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float special[] = {-infinity, -2.0f, -0.0f, 0.0f, 1e-40f, 3e-40f, 6e-8f, 2.0f,
                           infinity,  nan,   -nan,  1.0f, 1.0f,   1.0f,   -1.0f, 0.5f};
  Random random(seed);
  Scores out{dtype, std::vector<uint8_t>(static_cast<size_t>(count) * SizeOf(dtype)), {}};
  for (int64_t i = 0; i < count; ++i) {
    float number = random.Below(3) == 0 ? special[random.Below(16)] : random.Signed();
    uint8_t* at = out.bytes.data() + static_cast<size_t>(i) * SizeOf(dtype);
    if (dtype == DType::kF32) {
      std::memcpy(at, &number, 4);
    } else {
      const bool bf16 = dtype == DType::kBF16;
      const uint16_t half = bf16 ? BF16FromF32(number) : F16FromF32(number);
      std::memcpy(at, &half, 2);
      number = bf16 ? F32FromBF16(half) : F32FromF16(half);
    }
    out.numbers.push_back(number);
  }
  return out;
}

// Is a better than b, both numbers or NaN?
bool Better(float a, float b) {
  if (std::isnan(a)) return false;
  return std::isnan(b) || a > b;
}

std::vector<uint8_t> Expected(const Scores& scores, const NmMaskArgs& a) {
  std::vector<uint8_t> mask(scores.numbers.size(), 0);
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t begin = 0; begin < a.cols; begin += a.m) {
      std::vector<int64_t> group(static_cast<size_t>(std::min(a.m, a.cols - begin)));
      std::iota(group.begin(), group.end(), row * a.cols + begin);
      std::stable_sort(group.begin(), group.end(), [&](int64_t i, int64_t j) {
        const float x = scores.numbers[static_cast<size_t>(i)];
        const float y = scores.numbers[static_cast<size_t>(j)];
        return a.magnitude ? Better(std::fabs(x), std::fabs(y)) : Better(x, y);
      });
      for (size_t k = 0; k < group.size() && k < static_cast<size_t>(a.n); ++k) {
        mask[static_cast<size_t>(group[k])] = 1;
      }
    }
  }
  return mask;
}

// The mask with a guard behind it, which must stay.
std::vector<uint8_t> Mask(const Scores& scores, NmMaskArgs a, const ParallelFor& parallel_for) {
  std::vector<uint8_t> mask(scores.numbers.size() + 64, 7);
  // Bytes of its own, so that AddressSanitizer sees a read beyond the last score.
  const std::vector<uint8_t> exact(scores.bytes);
  a.score = exact.data();
  a.dtype = scores.dtype;
  a.mask = mask.data();
  const Status status = NmMask(a, parallel_for);
  EXPECT_TRUE(status.ok()) << status.message();
  for (size_t i = scores.numbers.size(); i < mask.size(); ++i) EXPECT_EQ(mask[i], 7);
  mask.resize(scores.numbers.size());
  return mask;
}

// The same, score and mask lying transposed in memory.
std::vector<uint8_t> MaskDown(const Scores& scores, NmMaskArgs a) {
  const size_t element = SizeOf(scores.dtype);
  std::vector<uint8_t> turned(scores.bytes.size());
  std::vector<uint8_t> mask(scores.numbers.size() + 64, 7);
  const auto each = [&](auto visit) {
    for (int64_t row = 0; row < a.rows; ++row) {
      for (int64_t col = 0; col < a.cols; ++col) {
        visit(static_cast<size_t>(row * a.cols + col), static_cast<size_t>(col * a.rows + row));
      }
    }
  };
  each([&](size_t from, size_t to) {
    std::memcpy(turned.data() + to * element, scores.bytes.data() + from * element, element);
  });
  a.score = turned.data();
  a.dtype = scores.dtype;
  a.mask = mask.data();
  a.transposed = true;
  const Status status = NmMask(a, Serial());
  EXPECT_TRUE(status.ok()) << status.message();
  for (size_t i = scores.numbers.size(); i < mask.size(); ++i) EXPECT_EQ(mask[i], 7);
  std::vector<uint8_t> out(scores.numbers.size());
  each([&](size_t to, size_t from) { out[to] = mask[from]; });
  return out;
}

class NmMaskTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(NmMaskTest, EveryPattern) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int64_t m : {2, 4, 8, 16, 32}) {
      for (int64_t n = 1; n < m; ++n) {
        // Two blocks of the widest vectors and a rest.
        NmMaskArgs args{nullptr, dtype, 3, 37 * m, n, m, n % 2 == 0, nullptr};
        const Scores scores = MakeScores(dtype, args.rows * args.cols, static_cast<uint64_t>(n));
        ASSERT_EQ(Mask(scores, args, Serial()), Expected(scores, args))
            << n << ":" << m << " " << Name(dtype);
        // Rows as lanes: whole vectors of every width and a rest.
        args.rows = 19;
        args.cols = 3 * m;
        const Scores down = MakeScores(dtype, args.rows * args.cols, static_cast<uint64_t>(n));
        ASSERT_EQ(MaskDown(down, args), Expected(down, args))
            << n << ":" << m << " " << Name(dtype);
      }
    }
  }
}

TEST_P(NmMaskTest, EveryWidth) {
  const ForcedIsa forced(GetParam());
  for (const int64_t m : {2, 4, 8, 16, 32}) {
    for (int64_t cols = 0; cols <= 2 * m + 1; ++cols) {
      for (const int64_t n : {int64_t{1}, m / 2, m - 1}) {
        NmMaskArgs args{nullptr, DType::kF32, 5, cols, n, m, false, nullptr};
        const Scores scores = MakeScores(DType::kF32, args.rows * cols, 3);
        ASSERT_EQ(Mask(scores, args, Serial()), Expected(scores, args))
            << n << ":" << m << " " << cols;
        ASSERT_EQ(MaskDown(scores, args), Expected(scores, args)) << n << ":" << m << " " << cols;
      }
    }
  }
}

#if !defined(__wasm__)
TEST_P(NmMaskTest, Threads) {
  const ForcedIsa forced(GetParam());
  for (const int64_t cols : {1024, 1001}) {
    NmMaskArgs args{nullptr, DType::kF32, 50, cols, 2, 4, false, nullptr};
    const Scores scores = MakeScores(DType::kF32, args.rows * cols, 1);
    const std::vector<uint8_t> expected = Expected(scores, args);
    for (const int threads : {2, 3, 5}) {
      ThreadPool pool(threads);
      EXPECT_EQ(Mask(scores, args, pool.parallel_for()), expected);
    }
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(Isas, NmMaskTest, ::testing::ValuesIn(RunnableNmIsas()), IsaName);

TEST(NmMaskSelectionTest, HasASetWhereCsrHasOne) {
  ASSERT_EQ(CompiledNmIsas().size(), CompiledIsas().size());
  EXPECT_STREQ(CompiledNmIsas().back().name, "scalar");
  for (const NamedIsa& isa : CompiledNmIsas()) {
    EXPECT_EQ(NmMaskKernelName(4, DType::kBF16, kScalar | isa.isa),
              std::string("nm_mask_m4_bf16__") + isa.name);
  }
  EXPECT_EQ(NmMaskKernelName(32, DType::kF16, 0), "nm_mask_m32_f16__scalar");
}

TEST(NmMaskErrorTest, Texts) {
  const auto refused = [](NmMaskArgs a) { return NmMask(a, Serial()); };
  const NmMaskArgs good{nullptr, DType::kF32, 0, 8, 2, 4, false, nullptr};
  EXPECT_TRUE(refused(good).ok());
  NmMaskArgs a = good;
  a.m = 6;
  EXPECT_EQ(refused(a).code(), StatusCode::kUnimplemented);
  EXPECT_EQ(refused(a).message(), "nm_mask: m must be one of 2, 4, 8, 16, 32, got 6");
  a = good;
  a.n = 4;
  EXPECT_EQ(refused(a).code(), StatusCode::kInvalidValue);
  EXPECT_EQ(refused(a).message(), "nm_mask: n must be in [1, m - 1] = [1, 3], got 4");
  a = good;
  a.dtype = DType::kI8;
  EXPECT_EQ(refused(a).code(), StatusCode::kInvalidType);
  a = good;
  a.rows = -1;
  EXPECT_EQ(refused(a).code(), StatusCode::kInvalidValue);
}

}  // namespace
}  // namespace sparsekern::testing
