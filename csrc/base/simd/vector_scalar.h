// SPDX-License-Identifier: Apache-2.0
// The vector type of plain C++.
#pragma once

#include "base/simd/expansion.h"
#include "base/simd/tile_kernels.h"

namespace sparsekern {
namespace {

struct Scalar {
  static constexpr int kLanes = 1;
  static constexpr int kAccumulators = 16;
  static constexpr int kBatchVectors[] = {1, 4, 8, 16, 20};
  using Reg = float;
  static Reg Zero() { return 0.0f; }
  static Reg Set1(float v) { return v; }
  static Reg Load(const float* p) { return *p; }
  static void Store(float* p, Reg v) { *p = v; }
  static Reg Add(Reg a, Reg b) { return a + b; }
  static Reg Mul(Reg a, Reg b) { return a * b; }
  static Reg Div(Reg a, Reg b) { return a / b; }
  static Reg Fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg Max(Reg a, Reg b) { return a > b ? a : b; }
  static Reg Min(Reg a, Reg b) { return a < b ? a : b; }
  // Adding 1.5 * 2^23 leaves no room for a fraction: rounds to nearest for |v| < 2^22.
  static Reg Round(Reg v) { return (v + 12582912.0f) - 12582912.0f; }
  static Reg Pow2(Reg n) {
    if (n != n) return n;
    return __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
  }
  static Reg IfNegative(Reg x, Reg a, Reg b) { return x < 0.0f ? a : b; }
  using Mask = bool;
  static Mask Above(const uint8_t* bytes, int n) { return *bytes > n; }
  static Reg Where(Mask mask, Reg a, Reg b) { return mask ? a : b; }
  static Reg LoadBF16(const uint16_t* p) { return F32FromBF16(*p); }
  static Reg LoadF16(const uint16_t* p) { return F32FromF16(*p); }
  static Reg LoadI8(const int8_t* p) { return *p; }
  static void StoreBF16(uint16_t* p, Reg v) { *p = BF16FromF32(v); }
  static void StoreF16(uint16_t* p, Reg v) { *p = F16FromF32(v); }
  using Lanes = bool;
  static Lanes LanesOf(uint32_t bits) { return bits != 0; }
  template <int i>
  static Lanes Piece(const uint64_t* word) {
    return (*word >> i & 1) != 0;
  }
  static Reg Spread(Reg v, Lanes lane) { return lane ? v : 0.0f; }
  static Reg FmaKept(Reg a, Reg b, Reg c, Lanes lane) { return lane ? a * b + c : c; }
  static int CountKept(uint32_t bits) { return static_cast<int>(bits); }
  static void Transpose(Reg*) {}
};

}  // namespace
}  // namespace sparsekern
