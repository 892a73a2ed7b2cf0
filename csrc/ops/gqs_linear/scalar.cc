// SPDX-License-Identifier: Apache-2.0
// gqs_linear in plain C++.
#include "base/simd/vector_scalar.h"
#include "ops/gqs_linear/generic.h"

namespace sparsekern {
namespace {

struct GqsScalar : Scalar {
  static constexpr int kMostRows = 4;
  static constexpr bool kGroups = false;
  static constexpr bool kMasks = false;
  using Word = uint32_t;
  static Word LoadWord(const uint8_t* p) {
    uint32_t w;
    std::memcpy(&w, p, sizeof w);
    return w;
  }
  template <int b>
  static Reg Code(Word w, int j) {
    return static_cast<float>(static_cast<int32_t>(w << (32 - b - b * j)) >> (32 - b));
  }
  static float Sum(Reg v) { return v; }
};

}  // namespace

extern const GqsKernels kGqsKernels_scalar = MakeGqsKernels<GqsScalar>(kTileKernels_scalar, 4);

}  // namespace sparsekern
