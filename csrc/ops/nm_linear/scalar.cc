// SPDX-License-Identifier: Apache-2.0
// nm_linear in plain C++.
#include "base/simd/vector_scalar.h"
#include "ops/nm_linear/generic.h"

namespace sparsekern {
namespace {

struct NmScalar : Scalar {
  using Word = uint32_t;
  static Word LoadWord(const uint8_t* p) {
    uint32_t w;
    std::memcpy(&w, p, sizeof w);
    return w;
  }
  template <int b>
  static Word Shift(Word w) {
    return w >> b;
  }
  template <int W>
  static Reg Pick(const float* x, Word w) {
    return x[w & (W - 1)];
  }
  template <int W>
  static void StoreColumns(uint8_t* p, Word w, int first) {
    *p = static_cast<uint8_t>((w & (W - 1)) + static_cast<uint32_t>(first));
  }
};

}  // namespace

extern const NmKernels kNmKernels_scalar = MakeNmKernels<NmScalar>(kTileKernels_scalar, 2);

}  // namespace sparsekern
