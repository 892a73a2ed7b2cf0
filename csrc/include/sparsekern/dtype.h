// SPDX-License-Identifier: Apache-2.0
// Element types and their scalar conversions.
//
// Kernel files for different instruction sets include this header, so everything is `static`: an
// inline function with external linkage would be merged by the linker, and the copy compiled with
// AVX-512 could become the one that the scalar path calls. For the same reason __builtin_bit_cast
// stands where std::bit_cast (a template of the standard library) would.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsekern {

// The numbers are part of the packed formats: never renumber.
enum class DType : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI8 = 3 };

static constexpr bool IsValid(DType dtype) { return static_cast<uint8_t>(dtype) <= 3; }

// Bytes of one element; 0 for a value that is no DType.
static constexpr size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32: return 4;
    case DType::kBF16: return 2;
    case DType::kF16: return 2;
    case DType::kI8: return 1;
  }
  return 0;
}

static constexpr const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kBF16: return "bfloat16";
    case DType::kF16: return "float16";
    case DType::kI8: return "int8";
  }
  return "unknown";
}

// As kernels' names have it.
static constexpr const char* ShortName(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "f16";
    case DType::kI8: return "i8";
  }
  return "unknown";
}

// bfloat16 is the upper half of a float32: exact.
static constexpr float F32FromBF16(uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; overflow becomes infinity; a NaN stays a (quiet) NaN.
static constexpr uint16_t BF16FromF32(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE 754 binary16: exact, subnormals included.
static constexpr float F32FromF16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0x1fu) {  // infinity, NaN (made quiet, as the hardware conversions do)
    const uint32_t quiet = fraction != 0 ? 0x00400000u : 0u;
    return __builtin_bit_cast(float, sign | 0x7f800000u | quiet | (fraction << 13));
  }
  if (exponent == 0) {  // fraction * 2^-24 has at most 10 significant bits: exact in float32
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, magnitude));
  }
  return __builtin_bit_cast(float, sign | ((exponent + 112u) << 23) | (fraction << 13));
}

// Rounds to nearest, ties to even, into subnormals too; from 65520 on becomes infinity; a NaN stays
// a (quiet) NaN.
static constexpr uint16_t F16FromF32(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // |value| >= 65520
  if (magnitude >= 0x38800000u) {  // normal in binary16: |value| >= 2^-14
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
  if (magnitude <= 0x33000000u) return static_cast<uint16_t>(sign);  // |value| <= 2^-25, tie to 0
  // Subnormal: shift the significand so that its unit is 2^-24, and round what falls off.
  const uint32_t shift = 126u - (magnitude >> 23);  // 14 .. 24
  const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t kept = significand >> shift;
  const uint32_t rest = significand & ((1u << shift) - 1u);
  const uint32_t half = 1u << (shift - 1u);
  const uint32_t up = (rest > half || (rest == half && (kept & 1u) != 0)) ? 1u : 0u;
  return static_cast<uint16_t>(sign | (kept + up));
}

}  // namespace sparsekern
