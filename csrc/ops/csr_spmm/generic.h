// SPDX-License-Identifier: Apache-2.0
// The csr kernels' loops, written once over a vector type V that each ISA file defines.
//
// Everything here is `static`, and V lives in an unnamed namespace: a template with external
// linkage, compiled here with AVX-512, could become by link order the copy that the scalar file
// calls.
//
// V offers: kLanes; kAccumulators (registers to hold sums in); Reg; Zero, Set1, Load, Store; Add,
// Mul, Div, Fma(a, b, c) = a*b + c; Max, Min (a NaN in the second argument survives); Round (to
// nearest); Pow2(n) for integral n, 2^128 = infinity; IfNegative(x, a, b); Mask; Above(bytes, n):
// the lanes whose byte is above n; Where(mask, a, b); Load16/Store16 of bf16 and f16, LoadI8;
// Transpose(Reg[kLanes]); Columns, the x block of a decode tile, with Look(indices). It may offer
// StorePart(p, v, n), which stores the first n < kLanes lanes.
//
// Batch (compute-bound): for one kept weight, one broadcast and width/kLanes multiply-adds whose x
// operands come straight from the first-level cache. Its limit is the load ports: (U + 2)/2 cycles
// for U vectors, that is two thirds of the FMA peak for U = 4. Decode (memory-bound): 5.2 to 5.7
// bytes a kept fp32 weight at 70 to 95 %, read once.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/csr_spmm/kernels.h"
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

// ---- decode ------------------------------------------------------------------------------------

// Asks for the index and the values of the step kAhead further on. Hardware prefetchers fall behind
// a loop of this many instructions a line: 83 -> 99 % of the read bandwidth on a Cascade Lake.
template <DType D, int R>
static inline void PrefetchStep(const uint8_t* values, const uint8_t* index) {
  constexpr int kAhead = 64 / R;
  constexpr int64_t kStepBytes = kBytesOf<D> * R * kCsrLanes;
  __builtin_prefetch(index + kAhead * kCsrLanes);
  for (int64_t i = 0; i < kStepBytes; i += 64) {
    __builtin_prefetch(values + kAhead * kStepBytes + i);
  }
}

// One row of x. A lane is a group of R outputs; sums stay in registers for a whole slice.
template <typename V, DType D, int R>
static inline void DecodeRow(const CsrTile& tile, const typename V::Columns& columns, float* y) {
  constexpr int kRegs = kCsrLanes / V::kLanes;
  const uint8_t* values = static_cast<const uint8_t*>(tile.values);
  const uint8_t* index = tile.index;
  int64_t left = tile.steps;
  for (int s = 0; s < tile.panel_groups; s += kCsrLanes) {
    const uint8_t* count = tile.count + s;
    const int steps = count[0] < left ? count[0] : static_cast<int>(left);
    if (steps == 0) break;  // sorted: nothing kept from here on
    left -= steps;
    typename V::Reg sum[R][kRegs];
    for (int i = 0; i < R; ++i) {
      for (int v = 0; v < kRegs; ++v) sum[i][v] = V::Zero();
    }
    const int full = count[kCsrLanes - 1] < steps ? count[kCsrLanes - 1] : steps;
    int j = 0;
    for (; j < full; ++j) {
      PrefetchStep<D, R>(values, index);
      for (int v = 0; v < kRegs; ++v) {
        const typename V::Reg x = columns.Look(index + v * V::kLanes);
        for (int i = 0; i < R; ++i) {
          sum[i][v] = V::Fma(x, LoadAs<V, D>(values, i * kCsrLanes + v * V::kLanes), sum[i][v]);
        }
      }
      index += kCsrLanes;
      values += kBytesOf<D> * R * kCsrLanes;
    }
    // The last steps, where some lanes have run out: their padding must not meet an infinity in x.
    for (; j < steps; ++j) {
      PrefetchStep<D, R>(values, index);
      for (int v = 0; v < kRegs; ++v) {
        const typename V::Reg x = columns.Look(index + v * V::kLanes);
        const typename V::Mask active = V::Above(count + v * V::kLanes, j);
        for (int i = 0; i < R; ++i) {
          const typename V::Reg more =
              V::Fma(x, LoadAs<V, D>(values, i * kCsrLanes + v * V::kLanes), sum[i][v]);
          sum[i][v] = V::Where(active, more, sum[i][v]);
        }
      }
      index += kCsrLanes;
      values += kBytesOf<D> * R * kCsrLanes;
    }
    const uint8_t* order = tile.order + s;
    for (int i = 0; i < R; ++i) {
      float lane[kCsrLanes];
      for (int v = 0; v < kRegs; ++v) V::Store(lane + v * V::kLanes, sum[i][v]);
      for (int l = 0; l < kCsrLanes; ++l) y[order[l] * R + i] += lane[l];
    }
  }
}

template <typename V, DType D, int R>
static void DecodeTile(const CsrTile& tile, const float* x, int64_t x_stride, int x_rows, float* y,
                       int64_t y_stride) {
  for (int m = 0; m < x_rows; ++m) {
    const typename V::Columns columns(x + m * x_stride);
    DecodeRow<V, D, R>(tile, columns, y + m * y_stride);
  }
}

// ---- gradient of the values --------------------------------------------------------------------

template <typename V, int R>
static void SddmmTile(const CsrTile& tile, const float* grad, const float* x, int width,
                      float* values_grad) {
  const uint8_t* index = tile.index;
  int64_t left = tile.steps;
  for (int s = 0; s < tile.panel_groups; s += kCsrLanes) {
    const uint8_t* count = tile.count + s;
    const int slice_steps = count[0] < left ? count[0] : static_cast<int>(left);
    left -= slice_steps;
    for (int l = 0; l < kCsrLanes; ++l) {
      const int steps = count[l] < slice_steps ? count[l] : slice_steps;
      for (int j = 0; j < steps; ++j) {
        const float* xk = x + static_cast<int64_t>(index[j * kCsrLanes + l]) * width;
        for (int i = 0; i < R; ++i) {
          const float* g = grad + (static_cast<int64_t>(tile.order[s + l]) * R + i) * width;
          typename V::Reg a = V::Zero(), b = V::Zero();
          int m = 0;
          for (; m + 2 * V::kLanes <= width; m += 2 * V::kLanes) {
            a = V::Fma(V::Load(g + m), V::Load(xk + m), a);
            b = V::Fma(V::Load(g + m + V::kLanes), V::Load(xk + m + V::kLanes), b);
          }
          for (; m < width; m += V::kLanes) a = V::Fma(V::Load(g + m), V::Load(xk + m), a);
          float lanes[V::kLanes];
          V::Store(lanes, V::Add(a, b));
          for (int n = V::kLanes / 2; n > 0; n /= 2) {
            for (int e = 0; e < n; ++e) lanes[e] += lanes[e + n];
          }
          values_grad[(static_cast<int64_t>(j) * R + i) * kCsrLanes + l] += lanes[0];
        }
      }
    }
    values_grad += static_cast<int64_t>(slice_steps) * R * kCsrLanes;
    index += static_cast<int64_t>(slice_steps) * kCsrLanes;
  }
}

// ---- conversion and transposition --------------------------------------------------------------

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

template <typename V, DType D>
static void PackRows(const void* in, int64_t stride, int rows, int64_t cols, int width,
                     float* out) {
  for (int m = 0; m < width; m += V::kLanes) {
    const int present = rows - m < 0 ? 0 : (rows - m < V::kLanes ? rows - m : V::kLanes);
    int64_t k = 0;
    for (; k + V::kLanes <= cols; k += V::kLanes) {
      typename V::Reg t[V::kLanes];
      for (int r = 0; r < V::kLanes; ++r) {
        t[r] = r < present ? LoadAs<V, D>(in, (m + r) * stride + k) : V::Zero();
        __builtin_prefetch(static_cast<const char*>(in) + ((m + r) * stride + k) * kBytesOf<D> +
                           256);
      }
      V::Transpose(t);
      for (int r = 0; r < V::kLanes; ++r) V::Store(out + (k + r) * width + m, t[r]);
    }
    for (; k < cols; ++k) {
      for (int r = 0; r < V::kLanes; ++r) {
        out[k * width + m + r] = r < present ? LoadOne<D>(in, (m + r) * stride + k) : 0.0f;
      }
    }
  }
}

// The first n lanes: none for n <= 0, all from kLanes on.
template <typename V>
static inline void StoreFirst(float* p, typename V::Reg v, int n) {
  if (n >= V::kLanes) {
    V::Store(p, v);
  } else if (n > 0) {
    if constexpr (requires { V::StorePart(p, v, n); }) {
      V::StorePart(p, v, n);
    } else {
      float lanes[V::kLanes];
      V::Store(lanes, v);
      for (int i = 0; i < n; ++i) p[i] = lanes[i];
    }
  }
}

// The first n lanes, the others 0.
template <typename V>
static inline typename V::Reg LoadFirst(const float* p, int64_t n) {
  if (n >= V::kLanes) return V::Load(p);
  float lanes[V::kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return V::Load(lanes);
}

template <typename V, DType D>
static void PackChannels(const void* in, int64_t stride, int64_t channels, int64_t n, int width,
                         float* out) {
  const char* bytes = static_cast<const char*>(in);
  for (int64_t c = 0; c < channels; ++c) {
    const char* from = bytes + c * stride * kBytesOf<D>;
    float* to = out + c * width;
    int64_t i = 0;
    for (; i + V::kLanes <= n; i += V::kLanes) V::Store(to + i, LoadAs<V, D>(from, i));
    for (; i < n; ++i) to[i] = LoadOne<D>(from, i);
  }
}

template <typename V, DType D>
static void StoreRows(const float* in, int width, int rows, int64_t cols, const float* scale,
                      const float* bias, Clamp clamp, void* out, int64_t stride) {
  const typename V::Reg low = V::Set1(clamp.low), high = V::Set1(clamp.high);
  for (int m = 0; m < rows; m += V::kLanes) {
    const int present = rows - m < V::kLanes ? rows - m : V::kLanes;
    for (int64_t c = 0; c < cols; c += V::kLanes) {
      const int64_t n = cols - c < V::kLanes ? cols - c : V::kLanes;
      typename V::Reg t[V::kLanes];
      for (int r = 0; r < V::kLanes; ++r) {
        t[r] = r < n ? V::Load(in + (c + r) * width + m) : V::Zero();
      }
      V::Transpose(t);
      const typename V::Reg s = scale != nullptr ? LoadFirst<V>(scale + c, n) : V::Set1(1.0f);
      const typename V::Reg b = bias != nullptr ? LoadFirst<V>(bias + c, n) : V::Zero();
      for (int r = 0; r < present; ++r) {
        typename V::Reg v = t[r];
        if (scale != nullptr) v = V::Mul(v, s);
        if (bias != nullptr) v = V::Add(v, b);
        v = V::Min(high, V::Max(low, v));
        const int64_t position = (m + r) * stride + c;
        if (n == V::kLanes) {
          StoreAs<V, D>(out, position, v);
          // kLanes rows are more streams than the hardware prefetcher follows: 8.7 -> 3.9 ms for
          // 25 MB.
          __builtin_prefetch(static_cast<char*>(out) + position * kBytesOf<D> + 128, 1);
        } else {
          float lanes[V::kLanes];
          V::Store(lanes, v);
          for (int64_t e = 0; e < n; ++e) StoreOne<D>(out, position + e, lanes[e]);
        }
      }
    }
  }
}

// ---- activations -------------------------------------------------------------------------------

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

// ---- batch -------------------------------------------------------------------------------------

// One lane: R rows of weights times U vectors of x. Short products keep S sets of sums on
// alternating steps, to hide the multiply-add's latency. The sums start at 0 and meet y at the end:
// y comes from the second-level cache, and this way nothing waits for it.
template <typename V, int R, int U>
static inline __attribute__((always_inline)) void BatchSums(const float* values,
                                                            const uint8_t* index, int steps,
                                                            const float* x, int width,
                                                            typename V::Reg (&total)[R][U]) {
  constexpr int S = R * U >= 4 ? 1 : 2;
  typename V::Reg sum[S][R][U];
  for (int set = 0; set < S; ++set) {
    for (int i = 0; i < R; ++i) {
      for (int u = 0; u < U; ++u) sum[set][i][u] = V::Zero();
    }
  }
  const auto step = [&](int set) __attribute__((always_inline)) {
    const float* xk = x + static_cast<int64_t>(index[set * kCsrLanes]) * width;
    // One address per step: with an index register in each operand the multiply-adds take two
    // slots.
    asm("" : "+r"(xk));
    for (int i = 0; i < R; ++i) {
      const typename V::Reg w = V::Set1(values[(set * R + i) * kCsrLanes]);
      for (int u = 0; u < U; ++u) {
        sum[set][i][u] = V::Fma(w, V::Load(xk + u * V::kLanes), sum[set][i][u]);
      }
    }
  };
  int j = 0;
#if defined(__wasm_simd128__)
  // Else V8 unrolls by two itself, and spills sums in the first copy (8 % slower on long rows).
#pragma clang loop unroll_count(4)
#endif
  for (; j + S <= steps; j += S) {
    for (int set = 0; set < S; ++set) step(set);
    values += S * R * kCsrLanes;
    index += S * kCsrLanes;
  }
  if (S > 1 && j < steps) step(0);
  for (int i = 0; i < R; ++i) {
    for (int u = 0; u < U; ++u) {
      total[i][u] = sum[0][i][u];
      for (int set = 1; set < S; ++set) total[i][u] = V::Add(total[i][u], sum[set][i][u]);
    }
  }
}

// P neighbouring lanes at a time, one word of indices for all: worth it where a lane alone is too
// narrow to pay for its loop (30 % at 16 rows of x with AVX-512, nothing at 64).
template <typename V, int R, int U, int P>
static inline __attribute__((always_inline)) void BatchSumsTogether(
    const float* values, const uint8_t* index, const int* steps, const float* x,
    typename V::Reg (&total)[P][R][U]) {
  constexpr int64_t kWidth = U * V::kLanes;
  static_assert(P == sizeof(uint64_t));
  for (int p = 0; p < P; ++p) {
    for (int i = 0; i < R; ++i) {
      for (int u = 0; u < U; ++u) total[p][i][u] = V::Zero();
    }
  }
  const auto add = [&](int p, uint8_t k) __attribute__((always_inline)) {
    const float* xk = x + k * kWidth;
    for (int i = 0; i < R; ++i) {
      const typename V::Reg w = V::Set1(values[i * kCsrLanes + p]);
      for (int u = 0; u < U; ++u) {
        total[p][i][u] = V::Fma(w, V::Load(xk + u * V::kLanes), total[p][i][u]);
      }
    }
  };
  int j = 0;
  for (; j < steps[P - 1]; ++j) {  // sorted: the last lane is the shortest
    uint64_t word;
    std::memcpy(&word, index, sizeof word);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) add(p, static_cast<uint8_t>(word >> 8 * p));
    values += R * kCsrLanes;
    index += kCsrLanes;
  }
  const float* const rest = values;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    values = rest;
    for (int more = j; more < steps[p]; ++more) {
      add(p, index[(more - j) * kCsrLanes + p]);
      values += R * kCsrLanes;
    }
  }
}

// Finished sums of rows `row`... of a panel, vectors from pixel `at` on, to where they belong. What
// is no clamp follows in a second pass, while the row is in the first-level cache.
template <typename V, int R, int U>
static inline __attribute__((always_inline)) void FinishLane(const typename V::Reg (&total)[R][U],
                                                             const CsrPanelOutput& output,
                                                             Clamp clamp, int64_t row, int at) {
  const typename V::Reg low = V::Set1(clamp.low), high = V::Set1(clamp.high);
  const int pixels = output.pixels - at;
  for (int i = 0; i < R && row + i < output.rows; ++i) {
    float* y = output.y + (row + i) * output.stride + at;
    const typename V::Reg s = V::Set1(output.scale != nullptr ? output.scale[row + i] : 1.0f);
    const typename V::Reg b = V::Set1(output.bias != nullptr ? output.bias[row + i] : 0.0f);
    typename V::Reg v[U];
    for (int u = 0; u < U; ++u) {
      v[u] = V::Min(high, V::Max(low, V::Add(V::Mul(total[i][u], s), b)));
    }
    if (pixels >= U * V::kLanes) {
      for (int u = 0; u < U; ++u) V::Store(y + u * V::kLanes, v[u]);
    } else {
      for (int u = 0; u < U; ++u) StoreFirst<V>(y + u * V::kLanes, v[u], pixels - u * V::kLanes);
    }
    if (!IsClamp(output.activation) && pixels > 0) {
      FinishRow<V>(y, pixels < U * V::kLanes ? pixels : U * V::kLanes, nullptr, nullptr,
                   output.activation);
    }
  }
}

template <typename V, int R, int U, bool kFirst, bool kLast>
static void BatchTileAs(const CsrTile& tile, const float* x, float* y,
                        const CsrPanelOutput* output) {
  constexpr int kWidth = U * V::kLanes;
  // Fewer vectors at a time where R rows of the full width would not fit in registers.
  constexpr int kFit = V::kAccumulators / R;
  constexpr int kPart = U < kFit ? U : kFit;
  constexpr int kWhole = U / kPart * kPart;
  constexpr int kTogether = 8 * R * U <= V::kAccumulators ? 8 : 1;
  const Clamp clamp = kLast ? ClampOf(output->activation) : Clamp{};
  constexpr bool kEveryGroup = kFirst || kLast;  // also those with nothing kept here
  const float* values = static_cast<const float*>(tile.values);
  const uint8_t* index = tile.index;
  int64_t left = tile.steps;
  for (int s = 0; s < tile.panel_groups; s += kCsrLanes) {
    const uint8_t* count = tile.count + s;
    const uint8_t* order = tile.order + s;
    const int slice_steps = count[0] < left ? count[0] : static_cast<int>(left);
    if (slice_steps == 0 && !kEveryGroup) break;  // sorted: nothing kept from here on
    left -= slice_steps;
    // Adds what y holds, unless this tile is the panel's first, and stores.
    const auto put = [&]<int P>(int l, int at,
                                typename V::Reg(&total)[R][P]) __attribute__((always_inline)) {
      const int64_t row = static_cast<int64_t>(order[l]) * R;
      float* sums = y + row * kWidth + at;
      if constexpr (!kFirst) {
        for (int i = 0; i < R; ++i) {
          for (int u = 0; u < P; ++u) {
            total[i][u] = V::Add(V::Load(sums + i * kWidth + u * V::kLanes), total[i][u]);
          }
        }
      }
      if constexpr (kLast) {
        FinishLane<V, R, P>(total, *output, clamp, row, at);
      } else {
        for (int i = 0; i < R; ++i) {
          for (int u = 0; u < P; ++u) V::Store(sums + i * kWidth + u * V::kLanes, total[i][u]);
        }
      }
    };
    for (int l = 0; l < kCsrLanes; l += kTogether) {
      int steps[kTogether];
      for (int p = 0; p < kTogether; ++p) {
        steps[p] = count[l + p] < slice_steps ? count[l + p] : slice_steps;
      }
      if (steps[0] == 0 && !kEveryGroup) break;
      if constexpr (kTogether > 1) {
        typename V::Reg total[kTogether][R][U];
        BatchSumsTogether<V, R, U, kTogether>(values + l, index + l, steps, x, total);
        for (int p = 0; p < kTogether; ++p) put.template operator()<U>(l + p, 0, total[p]);
      } else {
        const auto part = [&]<int P>(int at) __attribute__((always_inline)) {
          typename V::Reg total[R][P];
          BatchSums<V, R, P>(values + l, index + l, steps[0], x + at, kWidth, total);
          put.template operator()<P>(l, at, total);
        };
        for (int at = 0; at < kWhole * V::kLanes; at += kPart * V::kLanes) {
          part.template operator()<kPart>(at);
        }
        if constexpr (kWhole < U) part.template operator()<U - kWhole>(kWhole * V::kLanes);
      }
    }
    values += static_cast<int64_t>(slice_steps) * R * kCsrLanes;
    index += static_cast<int64_t>(slice_steps) * kCsrLanes;
  }
}

template <typename V, int R, int U>
static void BatchTile(const CsrTile& tile, const float* x, float* y, bool first,
                      const CsrPanelOutput* output) {
  // Constants, not arguments: 3 to 5 % of a whole convolution.
  if (output == nullptr) {
    first ? BatchTileAs<V, R, U, true, false>(tile, x, y, output)
          : BatchTileAs<V, R, U, false, false>(tile, x, y, output);
  } else {
    first ? BatchTileAs<V, R, U, true, true>(tile, x, y, output)
          : BatchTileAs<V, R, U, false, true>(tile, x, y, output);
  }
}

// ---- int8 x ------------------------------------------------------------------------------------

// Largest magnitudes and whether anything is not finite, lane by lane -> what to divide and to
// multiply by.
template <typename V>
static inline void Int8Scales(typename V::Reg most, typename V::Reg odd, float* scale,
                              float* inverse) {
  float finite[V::kLanes];
  V::Store(scale, most);
  V::Store(finite, odd);
  for (int l = 0; l < V::kLanes; ++l) {
    const float largest = scale[l];
    const bool nothing = !(largest > 0x1p-100f);  // 127 / largest would overflow: as good as zeros
    scale[l] = finite[l] != 0.0f ? __builtin_nanf("") : nothing ? 0.0f : largest / 127.0f;
    inverse[l] = nothing ? 0.0f : 127.0f / largest;
  }
}

// `odd` stays 0 as long as every v is finite.
template <typename V>
static inline void Int8Seen(typename V::Reg v, typename V::Reg* most, typename V::Reg* odd) {
  *most = V::Max(V::Max(v, V::Mul(v, V::Set1(-1.0f))), *most);
  *odd = V::Fma(v, V::Zero(), *odd);
}

template <typename V>
static float QuantizeRow(float* row, int64_t n) {
  typename V::Reg most = V::Zero(), odd = V::Zero();
  for (int64_t i = 0; i < n; i += V::kLanes) {
    Int8Seen<V>(LoadFirst<V>(row + i, n - i), &most, &odd);
  }
  float lanes[V::kLanes], odds[V::kLanes], scale[V::kLanes], inverse[V::kLanes];
  V::Store(lanes, most);
  V::Store(odds, odd);
  for (int l = 1; l < V::kLanes; ++l) {
    lanes[0] = lanes[l] > lanes[0] ? lanes[l] : lanes[0];
    odds[0] += odds[l];
  }
  Int8Scales<V>(V::Set1(lanes[0]), V::Set1(odds[0]), scale, inverse);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const typename V::Reg v = V::Mul(LoadFirst<V>(row + i, n - i), V::Set1(inverse[0]));
    StoreFirst<V>(row + i, V::Round(v), n - i < V::kLanes ? static_cast<int>(n - i) : V::kLanes);
  }
  return scale[0];
}

template <typename V>
static void TileSteps(const float* x, int64_t cols, int width, float* scale, float* inverse) {
  for (int m = 0; m < width; m += V::kLanes) {
    typename V::Reg most = V::Zero(), odd = V::Zero();
    for (int64_t k = 0; k < cols; ++k) Int8Seen<V>(V::Load(x + k * width + m), &most, &odd);
    Int8Scales<V>(most, odd, scale + m, inverse + m);
  }
}

template <typename V>
static void QuantizeTile(float* x, int64_t cols, int width, const float* inverse) {
  for (int m = 0; m < width; m += V::kLanes) {
    const typename V::Reg by = V::Load(inverse + m);
    for (int64_t k = 0; k < cols; ++k) {
      float* at = x + k * width + m;
      V::Store(at, V::Round(V::Mul(V::Load(at), by)));
    }
  }
}

template <typename V>
static void Rescale(float* y, int64_t rows, int width, const float* scale) {
  for (int m = 0; m < width; m += V::kLanes) {
    const typename V::Reg by = V::Load(scale + m);
    for (int64_t r = 0; r < rows; ++r) {
      V::Store(y + r * width + m, V::Mul(V::Load(y + r * width + m), by));
    }
  }
}

// ---- the table ---------------------------------------------------------------------------------

// The kernel set of an ISA file: vector type, batch widths in vectors, decode limit.
template <typename V, int U0, int U1, int U2, int U3, int U4>
static constexpr CsrKernels MakeCsrKernels(const char* name, IsaMask isa, int max_decode_rows) {
  return CsrKernels{
      name,
      isa,
      max_decode_rows,
      {U0 * V::kLanes, U1 * V::kLanes, U2 * V::kLanes, U3 * V::kLanes, U4 * V::kLanes},
      {{DecodeTile<V, DType::kF32, 1>, DecodeTile<V, DType::kF32, 2>,
        DecodeTile<V, DType::kF32, 4>},
       {DecodeTile<V, DType::kBF16, 1>, DecodeTile<V, DType::kBF16, 2>,
        DecodeTile<V, DType::kBF16, 4>},
       {DecodeTile<V, DType::kF16, 1>, DecodeTile<V, DType::kF16, 2>,
        DecodeTile<V, DType::kF16, 4>},
       {DecodeTile<V, DType::kI8, 1>, DecodeTile<V, DType::kI8, 2>, DecodeTile<V, DType::kI8, 4>}},
      {{BatchTile<V, 1, U0>, BatchTile<V, 1, U1>, BatchTile<V, 1, U2>, BatchTile<V, 1, U3>,
        BatchTile<V, 1, U4>},
       {BatchTile<V, 2, U0>, BatchTile<V, 2, U1>, BatchTile<V, 2, U2>, BatchTile<V, 2, U3>,
        BatchTile<V, 2, U4>},
       {BatchTile<V, 4, U0>, BatchTile<V, 4, U1>, BatchTile<V, 4, U2>, BatchTile<V, 4, U3>,
        BatchTile<V, 4, U4>}},
      {SddmmTile<V, 1>, SddmmTile<V, 2>, SddmmTile<V, 4>},
      {Expand<V, DType::kF32>, Expand<V, DType::kBF16>, Expand<V, DType::kF16>,
       Expand<V, DType::kI8>},
      {Narrow<V, DType::kF32>, Narrow<V, DType::kBF16>, Narrow<V, DType::kF16>},
      {PackRows<V, DType::kF32>, PackRows<V, DType::kBF16>, PackRows<V, DType::kF16>},
      {PackChannels<V, DType::kF32>, PackChannels<V, DType::kBF16>, PackChannels<V, DType::kF16>},
      {StoreRows<V, DType::kF32>, StoreRows<V, DType::kBF16>, StoreRows<V, DType::kF16>},
      FinishChannels<V>,
      FinishRow<V>,
      QuantizeRow<V>,
      TileSteps<V>,
      QuantizeTile<V>,
      Rescale<V>};
}

}  // namespace sparsekern
