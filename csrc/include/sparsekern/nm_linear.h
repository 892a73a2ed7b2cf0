// SPDX-License-Identifier: Apache-2.0
// The product of an N:M matrix with dense activations: a linear layer.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/isa.h"
#include "sparsekern/linear.h"
#include "sparsekern/nm.h"
#include "sparsekern/parallel.h"

namespace sparsekern {

using NmMatrix = PackedMatrix<NmStructure>;

// Every stored weight, a zero too, multiplies as IEEE 754 says. Takes no int8_x.
Status NmLinear(const NmMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for);

// The kernel that an ISA mask selects, e.g. "nm_linear_2of4_bf16_decode__x86_avx512". A pure
// function.
std::string NmLinearKernelName(const NmMatrix& w, int64_t x_rows, IsaMask mask);

}  // namespace sparsekern
