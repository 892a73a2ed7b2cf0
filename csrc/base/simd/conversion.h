// SPDX-License-Identifier: Apache-2.0
// Elements of any dtype to fp32 vectors and back, over a vector type V.
//
// Everything in this folder's headers is `static`, and each V lives in an unnamed namespace: a
// template with external linkage, compiled here with AVX-512, could become by link order the copy
// that the scalar file calls.
//
// V offers: kLanes; kAccumulators (registers to hold sums in); kBatchVectors (widths of x tiles, in
// vectors); Reg; Zero, Set1, Load, Store; Add,
// Mul, Div, Fma(a, b, c) = a*b + c; Max, Min (a NaN in the second argument survives); Round (to
// nearest); Pow2(n) for integral n, 2^128 = infinity; IfNegative(x, a, b); Mask; Above(bytes, n):
// the lanes whose byte is above n; Where(mask, a, b); Load16/Store16 of bf16 and f16, LoadI8;
// Transpose(Reg[kLanes]); what expansion.h lists. It may offer StorePart(p, v, n), which stores the
// first n < kLanes lanes.
#pragma once

#include <cstdint>
#include <cstring>

#include "sparsekern/dtype.h"

namespace sparsekern {

template <typename V, DType D>
static inline typename V::Reg LoadAs(const void* p, int64_t i) {
  if constexpr (D == DType::kF32) return V::Load(static_cast<const float*>(p) + i);
  if constexpr (D == DType::kBF16) return V::LoadBF16(static_cast<const uint16_t*>(p) + i);
  if constexpr (D == DType::kF16) return V::LoadF16(static_cast<const uint16_t*>(p) + i);
  if constexpr (D == DType::kI8) return V::LoadI8(static_cast<const int8_t*>(p) + i);
}

template <typename V, DType D>
static inline void StoreAs(void* p, int64_t i, typename V::Reg v) {
  if constexpr (D == DType::kF32) V::Store(static_cast<float*>(p) + i, v);
  if constexpr (D == DType::kBF16) V::StoreBF16(static_cast<uint16_t*>(p) + i, v);
  if constexpr (D == DType::kF16) V::StoreF16(static_cast<uint16_t*>(p) + i, v);
}

template <DType D>
static inline float LoadOne(const void* p, int64_t i) {
  if constexpr (D == DType::kF32) return static_cast<const float*>(p)[i];
  if constexpr (D == DType::kBF16) return F32FromBF16(static_cast<const uint16_t*>(p)[i]);
  if constexpr (D == DType::kF16) return F32FromF16(static_cast<const uint16_t*>(p)[i]);
  if constexpr (D == DType::kI8) return static_cast<const int8_t*>(p)[i];
}

template <DType D>
static inline void StoreOne(void* p, int64_t i, float v) {
  if constexpr (D == DType::kF32) static_cast<float*>(p)[i] = v;
  if constexpr (D == DType::kBF16) static_cast<uint16_t*>(p)[i] = BF16FromF32(v);
  if constexpr (D == DType::kF16) static_cast<uint16_t*>(p)[i] = F16FromF32(v);
}

template <DType D>
static constexpr int64_t kBytesOf = SizeOf(D);

template <typename V, DType D>
static void Expand(const void* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::Store(out + i, LoadAs<V, D>(in, i));
  for (; i < n; ++i) out[i] = LoadOne<D>(in, i);
}

template <typename V, DType D>
static void Narrow(const float* in, int64_t n, void* out) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) StoreAs<V, D>(out, i, V::Load(in + i));
  for (; i < n; ++i) StoreOne<D>(out, i, in[i]);
}

}  // namespace sparsekern
