// SPDX-License-Identifier: Apache-2.0
// csr kernels in plain C++: the reference that every other instruction set is tested against.
#include "base/simd/vector_scalar.h"
#include "ops/csr_spmm/generic.h"

namespace sparsekern {
namespace {

struct CsrScalar : Scalar {
  struct Columns {
    const float* x;
    explicit Columns(const float* block) : x(block) {}
    // Masked: an index of a corrupt structure stays inside the block.
    Reg Look(const uint8_t* index) const { return x[*index & (kCsrBlockCols - 1)]; }
  };
};

}  // namespace

extern const CsrKernels kCsrKernels_scalar = MakeCsrKernels<CsrScalar>(kTileKernels_scalar, 2);

}  // namespace sparsekern
