// SPDX-License-Identifier: Apache-2.0
// The gqs format: round trips, and every check of the reader by a change that it must refuse.
#include <gtest/gtest.h>

#include <limits>

#include "gqs_case.h"
#include "sparsekern/gqs.h"

namespace sparsekern::testing {
namespace {

template <typename T>
void Put(std::vector<uint8_t>* bytes, size_t at, T value) {
  std::memcpy(bytes->data() + at, &value, sizeof value);
}

constexpr GqsKind kKinds[] = {{4, 16, GqsScale::kF16},       {4, 16, GqsScale::kU8},
                              {4, 128, GqsScale::kBF16},     {2, 64, GqsScale::kF32},
                              {8, 32, GqsScale::kF16, true}, {2, 16, GqsScale::kBF16, true}};

TEST(GqsFormat, RoundTrip) {
  constexpr int64_t shapes[][2] = {{1, 1}, {1, 300}, {40, 16}, {37, 129}, {65, 512}};
  for (const GqsKind& kind : kKinds) {
    for (const auto& shape : shapes) {
      for (const double density : {0.0, 0.5, 1.0}) {
        const GqsCase c = MakeGqsCase(shape[0], shape[1], kind, density);
        SCOPED_TRACE(Text(kind) + " " + std::to_string(shape[0]) + "x" + std::to_string(shape[1]));
        const Status status = c.Validate();
        ASSERT_TRUE(status.ok()) << status.message();
        const GqsMatrix w = c.Matrix();
        std::vector<int8_t> codes(c.codes.size(), 1);
        std::vector<uint8_t> mask(c.mask.size(), 2);
        UnpackGqs(w.structure, c.values.data(), codes.data());
        GqsMask(w.structure, mask.data());
        ASSERT_EQ(mask, c.mask);
        for (size_t i = 0; i < codes.size(); ++i) {
          const auto row = static_cast<int64_t>(i) / c.cols, k = static_cast<int64_t>(i) % c.cols;
          const bool kept = mask[static_cast<size_t>(row * c.RowGroups() + k / kind.group)] != 0;
          ASSERT_EQ(codes[i], kept ? c.codes[i] : 0);
        }
      }
    }
  }
}

// 4096 x 4096, half of the groups of 16 kept, 4 bits: what a weight costs, everything included.
TEST(GqsFormat, BitsPerWeight) {
  for (const bool narrow : {false, true}) {
    constexpr int64_t rows = 512, cols = 4096, groups = cols / 16;
    std::vector<int8_t> codes(rows * cols, 1);
    std::vector<uint8_t> mask(rows * groups);
    Random random(3);
    for (uint8_t& kept : mask) kept = random.Below(2) != 0;  // rows differ
    const std::vector<float> row_scale(rows, 1.0f);
    GqsSource source;
    source.codes = codes.data();
    source.mask = mask.data();
    source.row_scale = narrow ? row_scale.data() : nullptr;
    source.rows = rows;
    source.cols = cols;
    GqsPacker packer;
    ASSERT_TRUE(packer.Plan(source).ok());
    const double density = static_cast<double>(packer.groups()) / (rows * groups);
    const double bytes = static_cast<double>(packer.value_bytes()) +
                         static_cast<double>(packer.structure_bytes()) +
                         static_cast<double>(packer.groups()) * (narrow ? 1 : 2);
    EXPECT_NEAR(density, 0.5, 0.01);
    EXPECT_LE(bytes * 8 / (rows * cols) * 0.5 / density, narrow ? 2.35 : 2.6);
  }
}

TEST(GqsFormat, PackerRefuses) {
  GqsCase c = MakeGqsCase(4, 64, {4, 16}, 1.0);
  const auto plan = [&c](auto change) {
    GqsSource source = c.Source();
    change(source);
    GqsPacker packer;
    return packer.Plan(source).message();
  };
  EXPECT_EQ(plan([](GqsSource& s) { s.group = 24; }),
            "gqs: group must be 16, 32, 64 or 128, got 24");
  EXPECT_EQ(plan([](GqsSource& s) { s.bits = 3; }), "gqs: bits must be 2, 4 or 8, got 3");
  EXPECT_EQ(plan([](GqsSource& s) { s.rows = 0; }),
            "gqs: rows must be in [1, 2^31) and cols in [1, 2^25), got 0 x 64");
  std::fill(c.mask.begin(), c.mask.end(), uint8_t{1});
  c.codes[70] = 8;
  EXPECT_EQ(plan([](GqsSource&) {}),
            "gqs: codes must be in [-8, 7] for 4 bits, got 8 (row 1, column 6)");
}

TEST(GqsFormat, ReaderRefuses) {
  const GqsCase sound = MakeGqsCase(20, 150, {4, 16, GqsScale::kU8}, 0.6);
  const auto message = [&sound](auto change) {
    GqsCase c = sound;
    change(c);
    return c.Validate().message();
  };
  const auto header = [&](size_t at, auto value) {
    return message([&](GqsCase& c) { Put(&c.structure, at, value); });
  };
  ASSERT_EQ(message([](GqsCase&) {}), "");
  EXPECT_EQ(header(0, 'X'), "gqs: structure must begin with SKGQ");
  EXPECT_NE(header(4, uint32_t{2}).find("version must be 1, got 2"), std::string::npos);
  EXPECT_NE(header(8, int64_t{0}).find("rows must be"), std::string::npos);
  EXPECT_NE(header(16, int64_t{1} << 25).find("cols in"), std::string::npos);
  EXPECT_NE(header(24, uint32_t{17}).find("group must be"), std::string::npos);
  EXPECT_NE(header(28, uint32_t{5}).find("bits must be"), std::string::npos);
  EXPECT_NE(header(32, int64_t{1} << 40).find("must keep at most"), std::string::npos);
  EXPECT_NE(header(32, int64_t{-1}).find("must keep at most"), std::string::npos);
  EXPECT_NE(header(40, uint32_t{0}).find("tasks must have"), std::string::npos);
  EXPECT_NE(header(40, uint32_t{2049}).find("tasks must have"), std::string::npos);
  EXPECT_NE(header(44, uint32_t{3}).find("flags must be"), std::string::npos);
  EXPECT_NE(header(44, uint32_t{0}).find("length must match"), std::string::npos);
  EXPECT_NE(header(63, uint8_t{1}).find("bytes 48 to 63"), std::string::npos);
  EXPECT_NE(header(64, uint32_t{1}).find("row offsets must rise"), std::string::npos);
  EXPECT_NE(header(68, uint32_t{99999}).find("row offsets must rise"), std::string::npos);
  // Row offsets: 21 words and padding to 192; then the tasks, one here; then the masks.
  EXPECT_NE(header(64 + 21 * 4, uint8_t{1}).find("between sections"), std::string::npos);
  EXPECT_NE(header(192, uint32_t{19}).find("task 0 must begin"), std::string::npos);
  EXPECT_NE(header(192, uint32_t{20}).find("task 0 must begin"), std::string::npos);
  const auto mask = [&](auto flip) {
    return message([&](GqsCase& c) { flip(c.structure.data() + 256); });
  };
  EXPECT_NE(mask([](uint8_t* m) { m[0] ^= 1; }).find("the mask of row 0 must keep"),
            std::string::npos);
  EXPECT_NE(mask([](uint8_t* m) {
              for (int row = 0; row < 20;
                   ++row) {  // a kept group beyond the last, one fewer inside
                uint8_t* word = m + 2 * row;
                if (word[0] == 0) continue;
                word[0] = static_cast<uint8_t>(word[0] & (word[0] - 1));
                word[1] |= 0x80;
                return;
              }
            }).find("must be 0 beyond the last group"),
            std::string::npos);
  EXPECT_NE(message([](GqsCase& c) { c.scale[3] = 0; }).find("scales must be finite and not 0"),
            std::string::npos);
  const auto factor = [&](float v) { return header(sound.structure.size() - 128, v); };
  EXPECT_NE(factor(0.0f).find("row factors must be"), std::string::npos);
  EXPECT_NE(factor(std::numeric_limits<float>::infinity()).find("row factors"), std::string::npos);
  EXPECT_NE(message([](GqsCase& c) { c.values.pop_back(); }).find("values must have"),
            std::string::npos);
  EXPECT_NE(message([](GqsCase& c) { c.scale.pop_back(); }).find("scale must have"),
            std::string::npos);
  EXPECT_NE(message([](GqsCase& c) {
              c.kind.scale = GqsScale::kF32;
              c.scale.resize(c.scale.size() * 4);
            }).find("scales must be 8 bits"),
            std::string::npos);
}

TEST(GqsFormat, PaddingMustBeZero) {
  GqsCase c = MakeGqsCase(1, 40, {4, 16, GqsScale::kF16}, 1.0, 3);
  std::fill(c.mask.begin(), c.mask.end(), uint8_t{1});
  GqsPacker packer;
  ASSERT_TRUE(packer.Plan(c.Source()).ok());
  c.values.assign(static_cast<size_t>(packer.value_bytes()), 0);
  c.structure.assign(packer.structure_bytes(), 0);
  packer.Fill(c.values.data(), c.structure.data());
  c.scale.assign({0, 0x3c, 0, 0x3c, 0, 0x3c});  // 1.0
  ASSERT_TRUE(c.Validate().ok()) << c.Validate().message();
  c.values[1] |= 0x10;  // the fourth unit of a block that has three
  EXPECT_EQ(c.Validate().message(), "gqs: values beyond the last group must be 0");
  c.values[1] &= 0x0f;
  c.values[9 * 4 + 1] |= 0x01;  // column 41
  EXPECT_EQ(c.Validate().message(), "gqs: values beyond the columns must be 0 (row 0)");
  c.values[9 * 4 + 1] &= 0xf0;
  c.scale[1] = 0x7c;  // infinity
  EXPECT_NE(c.Validate().message().find("must be finite"), std::string::npos);
}

}  // namespace
}  // namespace sparsekern::testing
