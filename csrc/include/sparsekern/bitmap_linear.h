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

// The kernel that an ISA mask selects, e.g. "bitmap_linear_bf16_decode__x86_avx512". A pure
// function.
std::string BitmapLinearKernelName(const BitmapMatrix& w, int64_t x_rows, IsaMask mask);

}  // namespace sparsekern
