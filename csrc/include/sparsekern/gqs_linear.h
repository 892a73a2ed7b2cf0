// SPDX-License-Identifier: Apache-2.0
// The product of a group-quantized sparse matrix with dense activations: a linear layer.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/gqs.h"
#include "sparsekern/isa.h"
#include "sparsekern/linear.h"
#include "sparsekern/parallel.h"

namespace sparsekern {

// A packed weight: (code - zero) * scale of its group, times the factor of its row where scales are
// 8 bits. `structure` comes from ParseGqsStructure; `values` are structure.value_bytes() bytes,
// `scale` structure.scale_count() elements: the scales, then the zero-points where there are any.
struct GqsMatrix {
  GqsStructure structure;
  const uint8_t* values = nullptr;
  const void* scale = nullptr;
  GqsScale kind = GqsScale::kF32;
};

// Weights are made fp32, then multiplied and summed in fp32. With one row of x, codes may be
// instead, and the group's scale then multiplies their sum: beyond fp32 where |x| reaches about
// 2^128 / (2^(bits-1) * group). Pruned groups take no part, whatever x holds there. Takes int8_x,
// with any bits of W, and rounds each group of x (as wide as those of W) to multiples of its own
// largest magnitude / 127: a group with a NaN or an infinity counts as NaN.
Status GqsLinear(const GqsMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for);

// The kernel that an ISA mask selects, e.g. "gqs_linear_w4g16_decode__x86_avx512". A pure function.
std::string GqsLinearKernelName(const GqsMatrix& w, int64_t x_rows, IsaMask mask,
                                bool int8_x = false);

}  // namespace sparsekern
