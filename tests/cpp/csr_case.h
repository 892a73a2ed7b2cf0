// SPDX-License-Identifier: Apache-2.0
// What the csr tests share: a random matrix with its dense twin, sums in double, the instruction
// sets to test, and the comparison. The expected results come from the dense twin and never from
// what was packed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "sparsekern/csr.h"
#include "sparsekern/csr_spmm.h"

namespace sparsekern::testing {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435769u + 88172645463325252u) {}
  uint32_t Bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 32);
  }
  int Below(int n) { return static_cast<int>(Bits() % static_cast<uint32_t>(n)); }
  double Uniform() { return Bits() / 4294967296.0; }                // [0, 1)
  float Signed() { return static_cast<float>(Uniform() * 4 - 2); }  // [-2, 2)

 private:
  uint64_t state_;
};

// Elements as stored, and the numbers they stand for.
struct Elements {
  DType dtype = DType::kF32;
  std::vector<uint8_t> bytes;
  size_t size() const { return bytes.size() / SizeOf(dtype); }
  const void* data() const { return bytes.data(); }
  void* data() { return bytes.data(); }

  double operator[](size_t i) const {
    const uint8_t* p = bytes.data() + i * SizeOf(dtype);
    float f = 0;
    uint16_t h = 0;
    switch (dtype) {
      case DType::kF32: std::memcpy(&f, p, 4); return static_cast<double>(f);
      case DType::kBF16: std::memcpy(&h, p, 2); return static_cast<double>(F32FromBF16(h));
      case DType::kF16: std::memcpy(&h, p, 2); return static_cast<double>(F32FromF16(h));
      case DType::kI8: return static_cast<double>(static_cast<int8_t>(*p));
    }
    return 0;
  }
  void Set(size_t i, float value) {
    uint8_t* p = bytes.data() + i * SizeOf(dtype);
    const uint16_t h = dtype == DType::kBF16 ? BF16FromF32(value) : F16FromF32(value);
    switch (dtype) {
      case DType::kF32: std::memcpy(p, &value, 4); break;
      case DType::kBF16:
      case DType::kF16: std::memcpy(p, &h, 2); break;
      case DType::kI8: *p = static_cast<uint8_t>(static_cast<int8_t>(value)); break;
    }
  }
};

inline Elements Zeros(DType dtype, int64_t n) {
  return Elements{dtype, std::vector<uint8_t>(static_cast<size_t>(n) * SizeOf(dtype), 0)};
}

inline Elements RandomElements(DType dtype, int64_t n, uint64_t seed) {
  Elements out = Zeros(dtype, n);
  Random random(seed);
  for (size_t i = 0; i < out.size(); ++i) {
    const int whole = random.Below(254) - 127;
    const float value = dtype == DType::kI8 ? static_cast<float>(whole) : random.Signed();
    out.Set(i, value == 0 ? 1.0f : value);
  }
  return out;
}

// A random matrix, dense and packed. Buffers have their exact sizes, so that AddressSanitizer sees
// the first byte read beyond them.
struct Case {
  int64_t rows = 0;
  int64_t cols = 0;
  int block_rows = 1;
  Elements dense;
  std::vector<uint8_t> mask;
  Elements values;
  std::vector<uint8_t> structure;
  std::vector<float> scale;  // kI8 only

  bool Kept(int64_t r, int64_t k) const { return mask[static_cast<size_t>(r * cols + k)] != 0; }
  double Weight(int64_t r, int64_t k) const {
    const double w = dense[static_cast<size_t>(r * cols + k)];
    return scale.empty() ? w : w * static_cast<double>(scale[static_cast<size_t>(r)]);
  }
  CsrMatrix Matrix() const {
    CsrMatrix w;
    const Status status =
        ParseCsrStructure(structure.data(), structure.size(), "test", &w.structure);
    EXPECT_TRUE(status.ok()) << status.message();
    w.values = values.data();
    w.dtype = values.dtype;
    w.scale = scale.empty() ? nullptr : scale.data();
    return w;
  }
};

inline void Pack(Case* c) {
  CsrPacker packer;
  const Status status =
      packer.Plan(c->dense.data(), c->dense.dtype, c->rows, c->cols, c->mask.data(), c->block_rows);
  ASSERT_TRUE(status.ok()) << status.message();
  c->values = Zeros(c->dense.dtype, packer.value_count());
  c->structure.assign(packer.structure_bytes(), 0);
  packer.Fill(c->values.data(), c->structure.data());
}

inline Case MakeCase(int64_t rows, int64_t cols, double density, DType dtype, int block_rows,
                     uint64_t seed = 1) {
  Case c;
  c.rows = rows;
  c.cols = cols;
  c.block_rows = block_rows;
  c.dense = RandomElements(dtype, rows * cols, seed);
  c.mask.assign(static_cast<size_t>(rows * cols), 0);
  Random random(seed + 1);
  for (int64_t g = 0; g < rows; g += block_rows) {
    // One group in eight is full or empty: load balance and padding at their worst.
    const int kind = random.Below(16);
    for (int64_t k = 0; k < cols; ++k) {
      const bool kept = kind == 0 ? density > 0 : random.Uniform() < density && kind != 1;
      for (int64_t r = g; r < std::min(rows, g + block_rows); ++r) {
        c.mask[static_cast<size_t>(r * cols + k)] = kept ? 1 : 0;
      }
    }
  }
  if (dtype == DType::kI8) {
    for (int64_t r = 0; r < rows; ++r)
      c.scale.push_back(0.001f + 0.01f * static_cast<float>(random.Uniform()));
  }
  Pack(&c);
  return c;
}

// --- instruction sets ---------------------------------------------------------------------------

struct NamedIsa {
  const char* name;
  IsaMask isa;
};

// Every kernel set of kernels.inc that was compiled for this architecture.
inline std::vector<NamedIsa> CompiledIsas() {
  std::vector<NamedIsa> out;
#define SPARSEKERN_CSR_KERNELS(isa_flag, isa_suffix) out.push_back({#isa_suffix, isa_flag});
#include "ops/csr_spmm/kernels.inc"
#undef SPARSEKERN_CSR_KERNELS
  return out;
}

// Those that this processor runs; `scalar` is always among them.
inline std::vector<NamedIsa> RunnableIsas() {
  std::vector<NamedIsa> out;
  for (const NamedIsa& isa : CompiledIsas()) {
    if ((DetectedIsa() & isa.isa) != 0) out.push_back(isa);
  }
  return out;
}

// The same and those of int8_kernels.inc, each together with what it builds on: for x in int8.
inline std::vector<NamedIsa> RunnableInt8Isas() {
  std::vector<NamedIsa> out = RunnableIsas();
#define SPARSEKERN_CSR_INT8_KERNELS(isa_flag, isa_suffix)           \
  if ((DetectedIsa() & isa_flag) != 0) {                            \
    const IsaMask base = DetectedIsa() & (kAvx2 | kAvx512 | kNeon); \
    out.push_back({#isa_suffix, base | isa_flag});                  \
  }
#include "ops/csr_spmm/int8_kernels.inc"
#undef SPARSEKERN_CSR_INT8_KERNELS
  return out;
}

// Names the instances of a parameterized test after their kernel set.
inline std::string IsaName(const ::testing::TestParamInfo<NamedIsa>& instance) {
  return instance.param.name;
}

// Forces one kernel set for its lifetime.
class ForcedIsa {
 public:
  explicit ForcedIsa(const NamedIsa& isa) {
    const Status status = SetActiveIsa(kScalar | isa.isa);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  ~ForcedIsa() { static_cast<void>(SetActiveIsa(0)); }
  ForcedIsa(const ForcedIsa&) = delete;
  ForcedIsa& operator=(const ForcedIsa&) = delete;
};

// --- expected results ---------------------------------------------------------------------------

// A sum in double, what its terms add up to without their signs, and how many there were.
struct Sum {
  double value = 0;
  double magnitude = 0;
  int64_t terms = 0;
  void Add(double term) {
    value += term;
    magnitude += std::fabs(term);
    ++terms;
  }
};

inline double Activate(double z, Activation a) {
  const double clipped = std::min(std::max(z + 3, 0.0), 6.0);
  switch (a) {
    case Activation::kNone: return z;
    case Activation::kRelu: return z < 0 ? 0 : z;
    case Activation::kRelu6: return z < 0 ? 0 : z > 6 ? 6 : z;
    case Activation::kGelu: return 0.5 * z * std::erfc(-z / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return 0.5 * z * (1 + std::tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)));
    case Activation::kSilu: return z / (1 + std::exp(-z));
    case Activation::kHardswish: return z * clipped / 6;
  }
  return z;
}

// Element by element: c * eps * (terms + 1) * sum of absolute terms, then the rounding of the
// dtype; infinities and NaN exactly where expected. The Python tests' compare.py says why.
inline ::testing::AssertionResult Near(double got, const Sum& sum, DType dtype,
                                       Activation activation = Activation::kNone) {
  const double want = Activate(sum.value, activation);
  const double eps = 0x1p-23;
  double allowed = 0;
  if (std::isfinite(sum.magnitude)) {
    allowed = (eps * sum.magnitude + 1e-37) * static_cast<double>(sum.terms + 1);
    if (activation != Activation::kNone)
      allowed = 1.5 * allowed + 8 * eps * (1 + std::fabs(sum.value));
  }
  if (std::isfinite(want)) {
    const double unit = dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-24;
    allowed += unit * (std::fabs(want) + allowed) + (dtype == DType::kF16 ? 0x1p-25 : 0x1p-134);
  }
  const bool good = std::isfinite(want) ? std::isfinite(got) && std::fabs(got - want) <= allowed
                    : std::isnan(want)  ? std::isnan(got)
                                        : got == want;
  if (good) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "expected " << want << ", got " << got << ", allowed " << allowed;
}

// One element of x w^T + bias; x_row holds w.cols numbers.
template <typename X>
Sum Dot(const Case& w, int64_t row, const X& x_at, const float* bias) {
  Sum sum;
  for (int64_t k = 0; k < w.cols; ++k) {
    if (w.Kept(row, k)) sum.Add(w.Weight(row, k) * x_at(k));
  }
  if (bias != nullptr) sum.Add(static_cast<double>(bias[row]));
  return sum;
}

inline std::vector<float> RandomFloats(int64_t n, uint64_t seed) {
  std::vector<float> out(static_cast<size_t>(n));
  Random random(seed);
  for (float& value : out) value = random.Signed();
  return out;
}

}  // namespace sparsekern::testing
