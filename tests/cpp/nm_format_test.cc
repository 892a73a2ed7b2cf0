// SPDX-License-Identifier: Apache-2.0
// Packing and reading back, and the validator against damage. The bit-level oracle is in Python;
// this is what also runs under sanitizers, on ARM and in WebAssembly.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "csr_case.h"
#include "sparsekern/nm.h"

namespace sparsekern::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8};
constexpr int64_t kShapes[][2] = {{1, 1},   {1, 300}, {40, 1},  {16, 32}, {17, 33},
                                  {15, 31}, {33, 65}, {32, 64}, {5, 7},   {50, 130}};
constexpr int kPatterns[][2] = {{1, 2},  {1, 4},  {2, 4},   {3, 4},  {1, 8},  {4, 8},  {7, 8},
                                {1, 16}, {2, 16}, {15, 16}, {1, 32}, {8, 32}, {31, 32}};

// A random matrix, what of it is to be kept (at most n of m), and both packed. Buffers have their
// exact sizes, so that AddressSanitizer sees the first byte beyond them.
struct NmCase {
  int64_t rows = 0;
  int64_t cols = 0;
  int n = 0;
  int m = 0;
  Elements dense;
  std::vector<uint8_t> mask;
  Elements values;
  std::vector<uint8_t> structure;
};

void PackNm(NmCase* c, const uint8_t* mask) {
  NmPacker packer;
  const Status status =
      packer.Plan(c->dense.data(), c->dense.dtype, c->rows, c->cols, c->n, c->m, mask);
  ASSERT_TRUE(status.ok()) << status.message();
  c->values = RandomElements(c->dense.dtype, packer.value_count(), 5);  // must be written whole
  c->structure.assign(packer.structure_bytes(), 0xa5);
  packer.Fill(c->values.data(), c->structure.data());
}

NmCase MakeNmCase(int64_t rows, int64_t cols, int n, int m, DType dtype, uint64_t seed = 1) {
  NmCase c;
  c.rows = rows;
  c.cols = cols;
  c.n = n;
  c.m = m;
  c.dense = RandomElements(dtype, rows * cols, seed);
  c.mask.assign(static_cast<size_t>(rows * cols), 0);
  Random random(seed + 1);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < cols; k += m) {
      // Groups that are empty, that keep fewer than n, and (most) that keep n.
      const int kind = random.Below(8);
      int left = kind == 0 ? 0 : kind == 1 ? random.Below(n + 1) : n;
      for (int64_t i = k; i < std::min(cols, k + m) && left > 0; ++i) {
        if (random.Below(static_cast<int>(k + m - i)) < left) {
          c.mask[static_cast<size_t>(r * cols + i)] = 1;
          --left;
        }
      }
    }
  }
  PackNm(&c, c.mask.data());
  return c;
}

Status Validate(const NmCase& c) {
  return ValidateNm(c.structure.data(), c.structure.size(), c.values.data(),
                    static_cast<int64_t>(c.values.size()), c.values.dtype);
}

NmStructure Parsed(const NmCase& c) {
  NmStructure s;
  const Status status = ParseNmStructure(c.structure.data(), c.structure.size(), "test", &s);
  EXPECT_TRUE(status.ok()) << status.message();
  return s;
}

TEST(NmFormatTest, RoundTrip) {
  for (const auto& shape : kShapes) {
    for (const auto& pattern : kPatterns) {
      for (const DType dtype : kDTypes) {
        SCOPED_TRACE(std::to_string(shape[0]) + "x" + std::to_string(shape[1]) + " " +
                     std::to_string(pattern[0]) + ":" + std::to_string(pattern[1]) + " " +
                     Name(dtype));
        const NmCase c = MakeNmCase(shape[0], shape[1], pattern[0], pattern[1], dtype);
        const Status status = Validate(c);
        ASSERT_TRUE(status.ok()) << status.message();
        const NmStructure s = Parsed(c);
        EXPECT_EQ(s.n, c.n);
        EXPECT_EQ(s.m, c.m);
        Elements expected = c.dense;
        for (size_t i = 0; i < c.mask.size(); ++i) {
          if (c.mask[i] == 0) expected.Set(i, 0);
        }
        Elements dense = RandomElements(dtype, c.rows * c.cols, 99);  // must be overwritten whole
        UnpackNm(s, c.values.data(), dtype, dense.data());
        EXPECT_EQ(dense.bytes, expected.bytes);

        std::vector<uint8_t> mask(c.mask.size(), 7);
        NmMask(s, mask.data());
        for (int64_t r = 0; r < c.rows; ++r) {
          for (int64_t k = 0; k < c.cols; k += c.m) {
            int kept = 0;
            for (int64_t i = k; i < std::min(c.cols, k + c.m); ++i) {
              const auto at = static_cast<size_t>(r * c.cols + i);
              ASSERT_LE(mask[at], 1);
              ASSERT_LE(c.mask[at], mask[at]) << "row " << r << " column " << i;
              kept += mask[at];
            }
            ASSERT_EQ(kept, std::min<int64_t>(c.n, c.cols - k));
          }
        }

        // The whole pattern as the mask, and none (what is kept differs from zero): the same bits.
        NmCase again = c;
        again.dense = expected;
        PackNm(&again, mask.data());
        EXPECT_EQ(again.structure, c.structure);
        EXPECT_EQ(again.values.bytes, c.values.bytes);
        PackNm(&again, nullptr);
        EXPECT_EQ(again.structure, c.structure);
        EXPECT_EQ(again.values.bytes, c.values.bytes);
      }
    }
  }
}

TEST(NmFormatTest, TwoOfFourInBf16IsNineBitsAWeight) {
  const NmCase c = MakeNmCase(48, 96, 2, 4, DType::kBF16);
  EXPECT_EQ((c.values.bytes.size() + c.structure.size() - 64) * 8, 9u * 48 * 96);
}

TEST(NmFormatTest, AGroupThatKeepsTooMuchIsNamed) {
  NmCase c = MakeNmCase(20, 30, 2, 4, DType::kF32);
  const auto plan = [&](const uint8_t* mask) {
    NmPacker packer;
    return packer.Plan(c.dense.data(), DType::kF32, c.rows, c.cols, 2, 4, mask);
  };
  for (int64_t i = 24; i < 27; ++i) c.mask[static_cast<size_t>(3 * c.cols + i)] = 1;
  c.mask[static_cast<size_t>(3 * c.cols + 27)] = 0;
  Status status = plan(c.mask.data());
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_EQ(status.message(), "nm: row 3, columns 24 to 27 must keep at most 2 of 4, got 3");
  status = plan(nullptr);
  EXPECT_EQ(status.message(), "nm: row 0, columns 0 to 3 must keep at most 2 of 4, got 4");
}

// Any one flipped bit is refused, or another valid matrix that reads back: never a crash. What was
// never validated must not crash either.
TEST(NmFormatTest, FlippedBits) {
  int refused = 0;
  for (const auto& pattern : kPatterns) {
    const NmCase good = MakeNmCase(20, 75, pattern[0], pattern[1], DType::kI8);
    for (size_t bit = 0; bit < good.structure.size() * 8; bit += bit < 512 ? 1 : 5) {
      NmCase bad = good;
      bad.structure[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
      NmStructure s;
      const bool parsed =
          ParseNmStructure(bad.structure.data(), bad.structure.size(), "test", &s).ok();
      const Status status = Validate(bad);
      ASSERT_TRUE(parsed || !status.ok());
      if (!status.ok()) {
        ++refused;
        EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
        EXPECT_EQ(status.message().rfind("nm: ", 0), 0u) << status.message();
      }
      if (!parsed || s.value_count() > static_cast<int64_t>(bad.values.size())) continue;
      Elements dense = Zeros(DType::kI8, s.rows * s.cols);
      UnpackNm(s, bad.values.data(), DType::kI8, dense.data());
      std::vector<uint8_t> mask(dense.size());
      NmMask(s, mask.data());
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(NmFormatTest, ValuesBeyondTheMatrixAreRefused) {
  // 17 x 6 in groups of 4: lanes 1 to 15 of the second panel do not exist; of the second group only
  // two columns do, and it keeps three.
  const NmCase good = MakeNmCase(17, 6, 3, 4, DType::kI8);
  const NmStructure s = Parsed(good);
  int refused = 0;
  for (size_t i = 0; i < good.values.size(); ++i) {
    NmCase bad = good;
    bad.values.bytes[i] = 0x80;
    const auto lane = static_cast<int64_t>(i % kNmLanes);
    const auto step = static_cast<int64_t>(i) / kNmLanes % s.steps;
    const bool beyond = static_cast<int64_t>(i) / (s.steps * kNmLanes) * kNmLanes + lane >= 17;
    EXPECT_EQ(Validate(bad).ok(), !beyond && step != 5) << i;
    refused += Validate(bad).ok() ? 0 : 1;
  }
  EXPECT_EQ(refused, 15 * 6 + 17);
}

TEST(NmFormatTest, EveryLengthButTheRightOneIsRefused) {
  const NmCase good = MakeNmCase(20, 30, 2, 4, DType::kF32);
  for (size_t length = 0; length < good.structure.size() + 130; ++length) {
    NmCase other = good;
    other.structure.resize(length);
    EXPECT_EQ(Validate(other).ok(), length == good.structure.size()) << length;
  }
  for (const int change : {-1, 1, 16}) {
    const auto count = static_cast<int64_t>(good.values.size()) + change;
    const Elements values = Zeros(DType::kF32, count);
    EXPECT_FALSE(
        ValidateNm(good.structure.data(), good.structure.size(), values.data(), count, DType::kF32)
            .ok());
  }
}

TEST(NmFormatTest, AHeaderThatClaimsTooMuchIsRefused) {
  const NmCase good = MakeNmCase(20, 30, 2, 4, DType::kF32);
  const uint64_t claims[] = {
      0, uint64_t{1} << 31, uint64_t{1} << 40, uint64_t{1} << 63, ~uint64_t{0}, 0x7fffffff};
  for (const size_t offset : {size_t{8}, size_t{16}, size_t{24}, size_t{32}}) {
    for (const uint64_t claim : claims) {
      NmCase bad = good;
      std::memcpy(bad.structure.data() + offset, &claim, 8);
      EXPECT_FALSE(Validate(bad).ok()) << offset << " " << claim;
    }
  }
}

TEST(NmFormatTest, PlanRefusesShapesAndPatterns) {
  const float one = 1;
  NmPacker packer;
  const auto plan = [&](int64_t rows, int64_t cols, int n, int m) {
    return packer.Plan(&one, DType::kF32, rows, cols, n, m, nullptr);
  };
  for (const int64_t bad : {int64_t{0}, int64_t{-1}, int64_t{1} << 31, int64_t{1} << 62}) {
    EXPECT_EQ(plan(bad, 1, 2, 4).code(), StatusCode::kInvalidValue);
    EXPECT_EQ(plan(1, bad, 2, 4).code(), StatusCode::kInvalidValue);
  }
  for (const int m : {-4, 0, 1, 3, 5, 6, 12, 64}) {
    const Status status = plan(1, 1, 1, m);
    EXPECT_EQ(status.message(), "nm: m must be 2, 4, 8, 16 or 32, got " + std::to_string(m));
  }
  for (const int n : {-1, 0, 4, 5}) {
    const Status status = plan(1, 1, n, 4);
    EXPECT_EQ(status.message(), "nm: n must be in [1, 3] for m = 4, got " + std::to_string(n));
  }
  EXPECT_EQ(packer.Plan(&one, static_cast<DType>(9), 1, 1, 2, 4, nullptr).code(),
            StatusCode::kInvalidType);
  EXPECT_TRUE(plan(1, 1, 2, 4).ok());
}

}  // namespace
}  // namespace sparsekern::testing
