// SPDX-License-Identifier: Apache-2.0
// The product of a bitmap matrix with dense activations: a linear layer.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/bitmap.h"
#include "sparsekern/isa.h"
#include "sparsekern/linear.h"
#include "sparsekern/parallel.h"

namespace sparsekern {

using BitmapMatrix = PackedMatrix<BitmapStructure>;

// A kept weight, a zero too, multiplies as IEEE 754 says; a pruned one contributes nothing,
// whatever x holds there. Takes no int8_x.
Status BitmapLinear(const BitmapMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for);

// Rows of W with zeros where nothing is kept: `weights` is bfloat16 [rows][stride], of which the
// first w.cols columns count.
struct BitmapDenseRows {
  const void* weights;
  int64_t rows;
  int64_t stride;
};
struct BitmapDenseProduct {
  // *product: bfloat16 [x_rows][rows], contiguous, = x weights^T. It must last until the next call.
  Status (*run)(void* state, const BitmapDenseRows& block, const void** product);
  void* state;

  // Calls (*f)(block, product).
  template <typename F>
  static BitmapDenseProduct Of(F* f) {
    return {[](void* state, const BitmapDenseRows& block, const void** product) {
              return (*static_cast<F*>(state))(block, product);
            },
            f};
  }
};

// The product of bfloat16 W and x by way of `multiply`, for processors that multiply dense bfloat16
// matrices far faster than float32 ones: W is expanded block by block, and a block's product,
// rounded to bfloat16, gets bias and activation. Where x is not finite, this is BitmapLinear.
Status BitmapLinearDense(const BitmapMatrix& w, const LinearArgs& args,
                         const BitmapDenseProduct& multiply, const ParallelFor& parallel_for);

// Whether that is the faster way under an ISA mask: bfloat16 throughout, AMX, enough rows of x. A
// pure function.
bool BitmapPrefersDense(const BitmapMatrix& w, const LinearArgs& args, IsaMask mask);

// The kernel that an ISA mask selects, e.g. "bitmap_linear_bf16_decode__x86_avx512". A pure
// function. Of BitmapLinear: it knows nothing of BitmapLinearDense.
std::string BitmapLinearKernelName(const BitmapMatrix& w, int64_t x_rows, IsaMask mask);

}  // namespace sparsekern
