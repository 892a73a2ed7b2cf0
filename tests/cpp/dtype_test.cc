// SPDX-License-Identifier: Apache-2.0
// The scalar conversions against arithmetic in double, which knows nothing of their bit tricks.
#include "sparsekern/dtype.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace sparsekern {
namespace {

uint32_t Bits(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float FromBits(uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A 16-bit format by its definition: sign, exponent of `exponent_bits`, the rest fraction.
struct Format {
  int exponent_bits;
  int FractionBits() const { return 15 - exponent_bits; }
  int Bias() const { return (1 << (exponent_bits - 1)) - 1; }

  double Value(uint16_t bits) const {
    const int exponent = (bits & 0x7fff) >> FractionBits();
    const int fraction = bits & ((1 << FractionBits()) - 1);
    const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) {
      return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
    }
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - Bias() - FractionBits());
    return sign * std::ldexp(fraction + (1 << FractionBits()), exponent - Bias() - FractionBits());
  }

  uint16_t Infinity() const {
    return static_cast<uint16_t>(((1 << exponent_bits) - 1) << FractionBits());
  }

  // Nearest value, ties to the even bit pattern. Positive values are ordered like their patterns;
  // infinity stands, for rounding, one step above the largest finite value.
  uint16_t Nearest(float value) const {
    const double magnitude = std::fabs(static_cast<double>(value));
    const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
    uint16_t low = 0;
    uint16_t high = Infinity();
    while (high - low > 1) {
      const auto middle = static_cast<uint16_t>((low + high) / 2);
      (Value(middle) <= magnitude ? low : high) = middle;
    }
    const double below = Value(low);
    const double above = high == Infinity() ? std::ldexp(1.0, Bias() + 1) : Value(high);
    uint16_t nearest = low;
    if (magnitude - below > above - magnitude) nearest = high;
    if (magnitude - below == above - magnitude) nearest = (low & 1) != 0 ? high : low;
    return static_cast<uint16_t>(sign | nearest);
  }
};

constexpr Format kHalf{5};
constexpr Format kBrain{8};

// Every 16-bit value, the midpoint to its neighbour, and one float32 step around both.
std::vector<float> HardCases(const Format& format) {
  std::vector<float> cases = {0.0f, -0.0f, 1e-45f, std::numeric_limits<float>::max(),
                              std::numeric_limits<float>::infinity()};
  for (int bits = 0; bits < format.Infinity(); ++bits) {
    const double value = format.Value(static_cast<uint16_t>(bits));
    const double next = bits + 1 == format.Infinity()
                            ? std::ldexp(1.0, format.Bias() + 1)
                            : format.Value(static_cast<uint16_t>(bits + 1));
    for (const double center : {value, (value + next) / 2}) {
      const auto exact = static_cast<float>(center);
      for (const uint32_t step : {uint32_t{0}, uint32_t{1}, ~uint32_t{0}}) {
        const float near = FromBits(Bits(exact) + step);
        if (std::isfinite(near)) {
          cases.push_back(near);
          cases.push_back(-near);
        }
      }
    }
  }
  return cases;
}

TEST(DTypeTest, SizesAndNames) {
  EXPECT_EQ(SizeOf(DType::kF32), 4u);
  EXPECT_EQ(SizeOf(DType::kBF16), 2u);
  EXPECT_EQ(SizeOf(DType::kF16), 2u);
  EXPECT_EQ(SizeOf(DType::kI8), 1u);
  EXPECT_EQ(Name(DType::kBF16), std::string("bfloat16"));
  EXPECT_TRUE(IsValid(DType::kI8));
  EXPECT_FALSE(IsValid(static_cast<DType>(4)));
  EXPECT_EQ(SizeOf(static_cast<DType>(4)), 0u);
}

TEST(DTypeTest, HalfToFloatIsExactForAllValues) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const double expected = kHalf.Value(half);
    const float got = F32FromF16(half);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(got), expected) << bits;
      ASSERT_EQ(std::signbit(got), std::signbit(expected)) << bits;
    }
  }
}

TEST(DTypeTest, BrainToFloatIsExactForAllValues) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const auto brain = static_cast<uint16_t>(bits);
    const double expected = kBrain.Value(brain);
    const float got = F32FromBF16(brain);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(got), expected) << bits;
    }
  }
}

TEST(DTypeTest, FloatToHalfRoundsToNearestEven) {
  for (const float value : HardCases(kHalf)) {
    ASSERT_EQ(F16FromF32(value), kHalf.Nearest(value)) << value;
  }
}

TEST(DTypeTest, FloatToBrainRoundsToNearestEven) {
  for (const float value : HardCases(kBrain)) {
    ASSERT_EQ(BF16FromF32(value), kBrain.Nearest(value)) << value;
  }
}

TEST(DTypeTest, NanStaysNan) {
  // The second has its payload only in bits that the 16-bit formats drop.
  for (const uint32_t bits : {0x7fc00000u, 0x7f800001u, 0xffc12345u, 0xff800001u}) {
    const float nan = FromBits(bits);
    EXPECT_TRUE(std::isnan(F32FromF16(F16FromF32(nan)))) << bits;
    EXPECT_TRUE(std::isnan(F32FromBF16(BF16FromF32(nan)))) << bits;
  }
}

}  // namespace
}  // namespace sparsekern
