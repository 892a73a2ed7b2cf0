// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace sparsekern {

// Applied to the result before it is stored. The numbers are the operators' `activation` argument.
enum class Activation : uint8_t {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kGelu = 3,      // x * Phi(x), the exact (erf) form
  kGeluTanh = 4,  // its tanh approximation
  kSilu = 5,
  kHardswish = 6,
};

// What follows a product: y = activation(product * scale + bias), scale being the weight's own.
// bias: [rows], f32, or nullptr.
struct Epilogue {
  const float* bias = nullptr;
  Activation activation = Activation::kNone;
};

static constexpr bool IsValid(Activation a) { return static_cast<uint8_t>(a) <= 6; }

}  // namespace sparsekern
