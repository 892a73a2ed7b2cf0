// SPDX-License-Identifier: Apache-2.0
// Packing and reading back, and the validator against damage. The bit-level oracle is in Python;
// this is what also runs under sanitizers, on ARM and in WebAssembly.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "csr_case.h"
#include "sparsekern/bitmap.h"

namespace sparsekern::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8};
constexpr int64_t kShapes[][2] = {{1, 1},   {1, 300}, {40, 1},   {16, 64}, {17, 65},
                                  {15, 63}, {33, 64}, {32, 128}, {5, 7},   {50, 130}};

// A matrix and its packed form, in buffers of their exact sizes, so that AddressSanitizer sees the
// first byte beyond them.
struct Packed {
  Elements values;
  std::vector<uint8_t> structure;
};

Packed PackBitmap(const Case& c, const uint8_t* mask, const ParallelFor& parallel_for = Serial()) {
  BitmapPacker packer;
  const Status status =
      packer.Plan(c.dense.data(), c.dense.dtype, c.rows, c.cols, mask, parallel_for);
  EXPECT_TRUE(status.ok()) << status.message();
  Packed packed;
  packed.values = Zeros(c.dense.dtype, packer.value_count());
  packed.structure.assign(packer.structure_bytes(), 0xa5);  // must be written whole
  packer.Fill(packed.values.data(), packed.structure.data(), parallel_for);
  return packed;
}

Status Validate(const Packed& p) {
  return ValidateBitmap(p.structure.data(), p.structure.size(), p.values.data(),
                        static_cast<int64_t>(p.values.size()), p.values.dtype);
}

BitmapStructure Parsed(const Packed& p) {
  BitmapStructure s;
  const Status status = ParseBitmapStructure(p.structure.data(), p.structure.size(), "test", &s);
  EXPECT_TRUE(status.ok()) << status.message();
  return s;
}

TEST(BitmapFormatTest, RoundTrip) {
  for (const auto& shape : kShapes) {
    for (const DType dtype : kDTypes) {
      for (const double density : {0.0, 0.4, 1.0}) {
        const Case c = MakeCase(shape[0], shape[1], density, dtype, 1);
        SCOPED_TRACE(std::to_string(c.rows) + "x" + std::to_string(c.cols) + " " + Name(dtype));
        const Packed p = PackBitmap(c, c.mask.data());
        const Status status = Validate(p);
        ASSERT_TRUE(status.ok()) << status.message();
        const BitmapStructure s = Parsed(p);
        Elements dense = RandomElements(dtype, c.rows * c.cols, 9);
        std::vector<uint8_t> mask(c.mask.size(), 7);
        UnpackBitmap(s, p.values.data(), dtype, dense.data());
        BitmapMask(s, mask.data());
        ASSERT_EQ(mask, c.mask);
        for (size_t i = 0; i < mask.size(); ++i) {
          ASSERT_EQ(dense[i], mask[i] != 0 ? c.dense[i] : 0.0) << i;
        }
      }
    }
  }
}

// Bit c of row r's word is column 64 w + c; values follow row after row within a word of columns.
TEST(BitmapFormatTest, TheOrder) {
  Case c;
  c.rows = 18;
  c.cols = 70;
  c.dense = Zeros(DType::kF32, c.rows * c.cols);
  const auto set = [&](int64_t r, int64_t k, float v) {
    c.dense.Set(static_cast<size_t>(r * c.cols + k), v);
  };
  set(0, 65, 3.0f);
  set(1, 63, 2.0f);
  set(0, 5, 1.0f);
  set(17, 0, 4.0f);
  const Packed p = PackBitmap(c, nullptr);
  ASSERT_EQ(p.values.size(), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(p.values[i], static_cast<double>(i + 1));
  const BitmapStructure s = Parsed(p);
  EXPECT_EQ(s.panels, 2);
  EXPECT_EQ(s.words, 2);
  EXPECT_EQ(p.structure.size(), 64u + 64u + 2 * 2 * 128u);
  EXPECT_EQ(s.panel_ptr(1), 3);
  uint64_t word = 0;
  std::memcpy(&word, s.slice(0, 0), 8);
  EXPECT_EQ(word, uint64_t{1} << 5);
  std::memcpy(&word, s.slice(0, 0) + 8, 8);
  EXPECT_EQ(word, uint64_t{1} << 63);
  std::memcpy(&word, s.slice(0, 1), 8);
  EXPECT_EQ(word, 2u);
  std::memcpy(&word, s.slice(1, 0) + 8, 8);
  EXPECT_EQ(word, 1u);
}

TEST(BitmapFormatTest, WithoutAMaskWhatDiffersFromZero) {
  Case c;
  c.rows = 1;
  c.cols = 4;
  c.dense = Zeros(DType::kF32, 4);
  c.dense.Set(1, -0.0f);
  c.dense.Set(2, std::nanf(""));
  const Packed p = PackBitmap(c, nullptr);
  ASSERT_EQ(p.values.size(), 1u);
  EXPECT_TRUE(std::isnan(p.values[0]));
}

#if !defined(__wasm__)
TEST(BitmapFormatTest, ThreadsPackTheSame) {
  const Case c = MakeCase(200, 150, 0.4, DType::kBF16, 1);
  ThreadPool pool(3);
  const Packed serial = PackBitmap(c, c.mask.data());
  const Packed parallel = PackBitmap(c, c.mask.data(), pool.parallel_for());
  EXPECT_EQ(serial.structure, parallel.structure);
  EXPECT_EQ(serial.values.bytes, parallel.values.bytes);
}
#endif

// But for those of rows and columns, which may name a larger matrix whose last ones are empty.
TEST(BitmapFormatTest, EveryFlippedBitOfHeaderAndOffsetsIsSeen) {
  const Case c = MakeCase(20, 70, 0.5, DType::kBF16, 1);
  const Packed good = PackBitmap(c, c.mask.data());
  for (size_t i = 0; i < 128; ++i) {
    if (i >= 8 && i < 24) continue;
    for (int bit = 0; bit < 8; ++bit) {
      Packed bad = good;
      bad.structure[i] = static_cast<uint8_t>(bad.structure[i] ^ 1 << bit);
      EXPECT_FALSE(Validate(bad).ok()) << "byte " << i << ", bit " << bit;
    }
  }
  for (size_t i = 128; i < good.structure.size(); ++i) {
    Packed bad = good;
    bad.structure[i] = static_cast<uint8_t>(bad.structure[i] ^ 1);
    EXPECT_FALSE(Validate(bad).ok()) << "byte " << i;
  }
}

TEST(BitmapFormatTest, BitsBeyondTheMatrix) {
  const Case c = MakeCase(20, 70, 0.5, DType::kBF16, 1);
  const Packed good = PackBitmap(c, c.mask.data());
  // As many bits as values, but one of them outside: row 19's last bit becomes row 20's, and a
  // column's the one beyond the last.
  const auto move = [&](size_t from, size_t to) {
    Packed bad = good;
    const auto word = [&](size_t i) { return bad.structure.data() + 128 + i * 8; };
    uint64_t bits = 0;
    std::memcpy(&bits, word(from), 8);
    EXPECT_NE(bits, 0u);
    bits &= bits - 1;
    std::memcpy(word(from), &bits, 8);
    std::memcpy(&bits, word(to), 8);
    bits |= uint64_t{1} << 6;
    std::memcpy(word(to), &bits, 8);
    return Validate(bad);
  };
  // Panel 0: words 0..31 (two of columns); panel 1: words 32..63, rows 16 to 19 exist.
  const Status column = move(0, 16);
  EXPECT_NE(column.message().find("beyond the matrix"), std::string::npos) << column.message();
  size_t last = 35;  // a row of the second panel that keeps something
  const auto empty = [&](size_t word) {
    const auto* bytes = good.structure.data() + 128 + word * 8;
    return std::all_of(bytes, bytes + 8, [](uint8_t b) { return b == 0; });
  };
  while (last > 32 && empty(last)) --last;
  const Status row = move(last, 36);
  EXPECT_NE(row.message().find("beyond the matrix"), std::string::npos) << row.message();
}

TEST(BitmapFormatTest, LengthsAreChecked) {
  const Case c = MakeCase(20, 70, 0.5, DType::kF32, 1);
  const Packed good = PackBitmap(c, c.mask.data());
  for (const size_t length : {size_t{0}, size_t{63}, size_t{64}, good.structure.size() - 1}) {
    Packed bad = good;
    bad.structure.resize(length);
    EXPECT_FALSE(Validate(bad).ok()) << length;
  }
  Packed more = good;
  more.structure.push_back(0);
  EXPECT_FALSE(Validate(more).ok());
  Packed fewer = good;
  fewer.values.bytes.resize(fewer.values.bytes.size() - 4);
  EXPECT_FALSE(Validate(fewer).ok());
}

// A header that claims more than any memory holds fails by its length, without overflow.
TEST(BitmapFormatTest, AbsurdSizes) {
  const Case c = MakeCase(20, 70, 0.5, DType::kF32, 1);
  for (const int64_t rows : {int64_t{0}, int64_t{-1}, int64_t{1} << 31, (int64_t{1} << 31) - 1}) {
    for (const size_t at : {size_t{8}, size_t{16}}) {
      Packed bad = PackBitmap(c, c.mask.data());
      std::memcpy(bad.structure.data() + at, &rows, 8);
      EXPECT_FALSE(Validate(bad).ok()) << rows;
    }
  }
  BitmapPacker packer;
  EXPECT_FALSE(packer.Plan(c.dense.data(), DType::kF32, 0, 5, nullptr).ok());
  EXPECT_FALSE(packer.Plan(c.dense.data(), static_cast<DType>(7), 2, 5, nullptr).ok());
}

}  // namespace
}  // namespace sparsekern::testing
