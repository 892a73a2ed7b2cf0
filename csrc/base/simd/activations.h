// SPDX-License-Identifier: Apache-2.0
// Scale, bias and activation in place, over a vector type V.
#pragma once

#include "base/simd/conversion.h"
#include "base/simd/tile_kernels.h"

namespace sparsekern {

// e^x to about 2 ulp: x = n ln 2 + r, a degree-6 polynomial on |r| <= ln2 / 2 (coefficients of the
// Taylor series adjusted to the interval, as in Cephes). Overflows to infinity from 88.4. Below -80
// it stays at e^-80, 1.8e-35: a factor more and it would be denormal, over 100 cycles a vector.
template <typename V>
static inline typename V::Reg Exp(typename V::Reg x) {
  x = V::Min(V::Set1(88.8f), V::Max(V::Set1(-80.0f), x));
  const typename V::Reg n = V::Round(V::Mul(x, V::Set1(1.44269504f)));
  typename V::Reg r = V::Fma(n, V::Set1(-0.693359375f), x);
  r = V::Fma(n, V::Set1(2.12194440e-4f), r);
  typename V::Reg p = V::Set1(1.9875691500e-4f);
  p = V::Fma(p, r, V::Set1(1.3981999507e-3f));
  p = V::Fma(p, r, V::Set1(8.3334519073e-3f));
  p = V::Fma(p, r, V::Set1(4.1665795894e-2f));
  p = V::Fma(p, r, V::Set1(1.6666665459e-1f));
  p = V::Fma(p, r, V::Set1(5.0000001201e-1f));
  p = V::Fma(V::Mul(r, r), p, V::Add(r, V::Set1(1.0f)));
  return V::Mul(p, V::Pow2(n));
}

// 1 / (1 + e^-x)
template <typename V>
static inline typename V::Reg Sigmoid(typename V::Reg x) {
  const typename V::Reg one = V::Set1(1.0f);
  return V::Div(one, V::Add(one, Exp<V>(V::Mul(x, V::Set1(-1.0f)))));
}

// Phi(x) = erfc(-x / sqrt 2) / 2 by Abramowitz and Stegun 7.1.26 (error 1.5e-7). The tail is
// computed as such, not as 1 - erf, so large negative x lose nothing to cancellation.
template <typename V>
static inline typename V::Reg NormalCdf(typename V::Reg x) {
  const typename V::Reg one = V::Set1(1.0f);
  const typename V::Reg s = V::Mul(x, V::Set1(0.70710678f));
  const typename V::Reg z = V::IfNegative(s, V::Mul(s, V::Set1(-1.0f)), s);
  const typename V::Reg t = V::Div(one, V::Fma(z, V::Set1(0.3275911f), one));
  typename V::Reg p = V::Set1(1.061405429f);
  p = V::Fma(p, t, V::Set1(-1.453152027f));
  p = V::Fma(p, t, V::Set1(1.421413741f));
  p = V::Fma(p, t, V::Set1(-0.284496736f));
  p = V::Fma(p, t, V::Set1(0.254829592f));
  p = V::Mul(p, t);
  const typename V::Reg tail =
      V::Mul(V::Mul(p, V::Set1(0.5f)), Exp<V>(V::Mul(V::Mul(z, z), V::Set1(-1.0f))));
  return V::IfNegative(s, tail, V::Fma(tail, V::Set1(-1.0f), one));
}

template <typename V, Activation A>
static inline typename V::Reg Activate(typename V::Reg x) {
  if constexpr (A == Activation::kRelu) return V::Max(V::Zero(), x);
  if constexpr (A == Activation::kRelu6) return V::Min(V::Set1(6.0f), V::Max(V::Zero(), x));
  if constexpr (A == Activation::kGelu) return V::Mul(x, NormalCdf<V>(x));
  if constexpr (A == Activation::kGeluTanh) {
    // 0.5 (1 + tanh u) = sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    const typename V::Reg cubic = V::Fma(V::Mul(x, x), V::Set1(0.044715f), V::Set1(1.0f));
    return V::Mul(x, Sigmoid<V>(V::Mul(V::Mul(x, cubic), V::Set1(1.59576912f))));
  }
  if constexpr (A == Activation::kSilu) return V::Mul(x, Sigmoid<V>(x));
  if constexpr (A == Activation::kHardswish) {
    const typename V::Reg gate = V::Min(V::Set1(6.0f), V::Max(V::Zero(), V::Add(x, V::Set1(3.0f))));
    return V::Mul(V::Mul(x, gate), V::Set1(1.0f / 6.0f));
  }
  return x;
}

template <typename V, Activation A>
static void FinishChannelsAs(float* acc, int64_t rows, int width, const float* scale,
                             const float* bias) {
  for (int64_t c = 0; c < rows; ++c) {
    const typename V::Reg s = V::Set1(scale != nullptr ? scale[c] : 1.0f);
    const typename V::Reg b = V::Set1(bias != nullptr ? bias[c] : 0.0f);
    float* row = acc + c * width;
    for (int m = 0; m < width; m += V::kLanes) {
      typename V::Reg v = V::Load(row + m);
      if (scale != nullptr) v = V::Mul(v, s);
      if (bias != nullptr) v = V::Add(v, b);
      V::Store(row + m, Activate<V, A>(v));
    }
  }
}

template <typename V, Activation A>
static void FinishRowAs(float* acc, int64_t n, const float* scale, const float* bias) {
  float tail_scale[V::kLanes] = {}, tail_bias[V::kLanes] = {}, tail[V::kLanes] = {};
  for (int64_t c = 0; c < n; c += V::kLanes) {
    const bool whole = c + V::kLanes <= n;
    const float* s = scale != nullptr ? scale + c : nullptr;
    const float* b = bias != nullptr ? bias + c : nullptr;
    float* a = acc + c;
    if (!whole) {
      const size_t bytes = static_cast<size_t>(n - c) * sizeof(float);
      if (s != nullptr) s = static_cast<const float*>(std::memcpy(tail_scale, s, bytes));
      if (b != nullptr) b = static_cast<const float*>(std::memcpy(tail_bias, b, bytes));
      a = static_cast<float*>(std::memcpy(tail, a, bytes));
    }
    typename V::Reg v = V::Load(a);
    if (s != nullptr) v = V::Mul(v, V::Load(s));
    if (b != nullptr) v = V::Add(v, V::Load(b));
    V::Store(a, Activate<V, A>(v));
    if (!whole) std::memcpy(acc + c, tail, static_cast<size_t>(n - c) * sizeof(float));
  }
}

template <typename V>
static void FinishChannels(float* acc, int64_t rows, int width, const float* scale,
                           const float* bias, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      if (scale != nullptr || bias != nullptr) {
        FinishChannelsAs<V, Activation::kNone>(acc, rows, width, scale, bias);
      }
      return;
    case Activation::kRelu:
      return FinishChannelsAs<V, Activation::kRelu>(acc, rows, width, scale, bias);
    case Activation::kRelu6:
      return FinishChannelsAs<V, Activation::kRelu6>(acc, rows, width, scale, bias);
    case Activation::kGelu:
      return FinishChannelsAs<V, Activation::kGelu>(acc, rows, width, scale, bias);
    case Activation::kGeluTanh:
      return FinishChannelsAs<V, Activation::kGeluTanh>(acc, rows, width, scale, bias);
    case Activation::kSilu:
      return FinishChannelsAs<V, Activation::kSilu>(acc, rows, width, scale, bias);
    case Activation::kHardswish:
      return FinishChannelsAs<V, Activation::kHardswish>(acc, rows, width, scale, bias);
  }
}

template <typename V>
static void FinishRow(float* acc, int64_t n, const float* scale, const float* bias,
                      Activation activation) {
  switch (activation) {
    case Activation::kNone:
      if (scale != nullptr || bias != nullptr)
        FinishRowAs<V, Activation::kNone>(acc, n, scale, bias);
      return;
    case Activation::kRelu: return FinishRowAs<V, Activation::kRelu>(acc, n, scale, bias);
    case Activation::kRelu6: return FinishRowAs<V, Activation::kRelu6>(acc, n, scale, bias);
    case Activation::kGelu: return FinishRowAs<V, Activation::kGelu>(acc, n, scale, bias);
    case Activation::kGeluTanh: return FinishRowAs<V, Activation::kGeluTanh>(acc, n, scale, bias);
    case Activation::kSilu: return FinishRowAs<V, Activation::kSilu>(acc, n, scale, bias);
    case Activation::kHardswish: return FinishRowAs<V, Activation::kHardswish>(acc, n, scale, bias);
  }
}

}  // namespace sparsekern
