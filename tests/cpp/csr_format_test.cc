// SPDX-License-Identifier: Apache-2.0
// Packing and reading back, and the validator against damage. The bit-level oracle is in Python;
// this is what also runs under sanitizers, on ARM and in WebAssembly.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "csr_case.h"

namespace sparsekern::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8};
constexpr int64_t kShapes[][2] = {{1, 1},    {1, 300},   {300, 1},   {16, 128}, {17, 129},
                                  {63, 127}, {255, 256}, {257, 257}, {600, 40}};

Status Validate(const Case& c) {
  return ValidateCsr(c.structure.data(), c.structure.size(), c.values.data(),
                     static_cast<int64_t>(c.values.size()), c.values.dtype);
}

void ExpectSameAsDense(const Case& c) {
  const Status status = Validate(c);
  ASSERT_TRUE(status.ok()) << status.message();
  const CsrMatrix w = c.Matrix();
  Elements dense =
      RandomElements(c.values.dtype, c.rows * c.cols, 99);  // must be overwritten whole
  UnpackCsr(w.structure, c.values.data(), c.values.dtype, dense.data());
  std::vector<uint8_t> mask(c.mask.size(), 7);
  CsrMask(w.structure, mask.data());
  EXPECT_EQ(mask, c.mask);
  Elements expected = c.dense;
  for (size_t i = 0; i < c.mask.size(); ++i) {
    if (c.mask[i] == 0) expected.Set(i, 0);
  }
  EXPECT_EQ(dense.bytes, expected.bytes);
}

TEST(CsrFormatTest, RoundTrip) {
  for (const auto& shape : kShapes) {
    for (const DType dtype : kDTypes) {
      for (const int r : {1, 2, 4}) {
        for (const double density : {0.0, 0.15, 1.0}) {
          SCOPED_TRACE(std::to_string(shape[0]) + "x" + std::to_string(shape[1]) + " " +
                       Name(dtype) + " r" + std::to_string(r) + " " + std::to_string(density));
          ExpectSameAsDense(MakeCase(shape[0], shape[1], density, dtype, r));
        }
      }
    }
  }
}

TEST(CsrFormatTest, Transpose) {
  for (const auto& shape : kShapes) {
    for (const int r : {1, 2, 4}) {
      const Case c = MakeCase(shape[0], shape[1], 0.2, DType::kF32, r);
      Case t;
      t.rows = c.cols;
      t.cols = c.rows;
      t.dense = Zeros(DType::kF32, c.rows * c.cols);
      t.mask.assign(c.mask.size(), 0);
      for (int64_t i = 0; i < c.rows; ++i) {
        for (int64_t k = 0; k < c.cols; ++k) {
          const auto to = static_cast<size_t>(k * c.rows + i);
          t.mask[to] = c.Kept(i, k) ? 1 : 0;
          t.dense.Set(to, static_cast<float>(c.dense[static_cast<size_t>(i * c.cols + k)]));
        }
      }
      std::vector<int64_t> permutation;
      const Status status = TransposeCsr(c.Matrix().structure, &t.structure, &permutation);
      ASSERT_TRUE(status.ok()) << status.message();
      t.values = Zeros(DType::kF32, static_cast<int64_t>(permutation.size()));
      for (size_t i = 0; i < permutation.size(); ++i) {
        if (permutation[i] < 0) continue;
        t.values.Set(i, static_cast<float>(c.values[static_cast<size_t>(permutation[i])]));
      }
      ExpectSameAsDense(t);
    }
  }
}

// Any one flipped bit is refused, or another valid matrix that reads back: never a crash.
TEST(CsrFormatTest, FlippedBits) {
  int refused = 0;
  for (const int r : {1, 4}) {
    const Case good = MakeCase(40, 150, 0.1, DType::kI8, r);
    for (size_t bit = 0; bit < good.structure.size() * 8; bit += 3) {
      Case bad = good;
      bad.structure[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
      const Status status = Validate(bad);
      if (!status.ok()) {
        ++refused;
        EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
        EXPECT_EQ(status.message().rfind("csr: ", 0), 0u) << status.message();
        continue;
      }
      const CsrMatrix w = bad.Matrix();
      Elements dense = Zeros(DType::kI8, w.structure.rows * w.structure.cols);
      UnpackCsr(w.structure, bad.values.data(), DType::kI8, dense.data());
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(CsrFormatTest, EveryLengthButTheRightOneIsRefused) {
  const Case good = MakeCase(20, 30, 0.2, DType::kF32, 1);
  for (size_t length = 0; length < good.structure.size() + 130; ++length) {
    Case other = good;
    other.structure.resize(length);
    EXPECT_EQ(Validate(other).ok(), length == good.structure.size()) << length;
  }
  for (const int change : {-1, 1, 16}) {
    const auto count = static_cast<int64_t>(good.values.size()) + change;
    const Elements values = Zeros(DType::kF32, count);
    EXPECT_FALSE(
        ValidateCsr(good.structure.data(), good.structure.size(), values.data(), count, DType::kF32)
            .ok());
  }
}

TEST(CsrFormatTest, AHeaderThatClaimsTooMuchIsRefused) {
  const Case good = MakeCase(20, 30, 0.2, DType::kF32, 1);
  const uint64_t claims[] = {
      0, uint64_t{1} << 31, uint64_t{1} << 40, uint64_t{1} << 63, ~uint64_t{0}, 0x7fffffff};
  for (const size_t offset : {size_t{8}, size_t{16}, size_t{32}, size_t{40}}) {
    for (const uint64_t claim : claims) {
      Case bad = good;
      std::memcpy(bad.structure.data() + offset, &claim, 8);
      EXPECT_FALSE(Validate(bad).ok()) << offset << " " << claim;
    }
  }
}

TEST(CsrFormatTest, PlanRefusesShapes) {
  const float one = 1;
  CsrPacker packer;
  for (const int64_t bad : {int64_t{0}, int64_t{-1}, int64_t{1} << 31, int64_t{1} << 62}) {
    EXPECT_EQ(packer.Plan(&one, DType::kF32, bad, 1, nullptr, 1).code(), StatusCode::kInvalidValue);
    EXPECT_EQ(packer.Plan(&one, DType::kF32, 1, bad, nullptr, 1).code(), StatusCode::kInvalidValue);
  }
  for (const int r : {-1, 0, 3, 8}) {
    EXPECT_EQ(packer.Plan(&one, DType::kF32, 1, 1, nullptr, r).code(), StatusCode::kInvalidValue);
  }
}

}  // namespace
}  // namespace sparsekern::testing
