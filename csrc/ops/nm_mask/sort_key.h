// SPDX-License-Identifier: Apache-2.0
// The comparison of N:M masks, one element at a time, for the scalar kernel and the CUDA one.
// `static`: generic.h says why.
#pragma once

#include <cstdint>

#include "base/cuda/host_device.h"
#include "sparsekern/dtype.h"

namespace sparsekern {

// An integer in the order of the scores, NaN least: the magnitude, negated where the sign counts
// and is set, so that -0.0 is 0. bits: of a float32, or a 16-bit element in the upper half.
static SPARSEKERN_HOST_DEVICE int32_t NmSortKey(uint32_t bits, bool is_f16, bool magnitude) {
  const auto size = static_cast<int32_t>(bits & 0x7fffffffu);
  if (size > (is_f16 ? 0x7c000000 : 0x7f800000)) return INT32_MIN;
  return bits >> 31 != 0 && !magnitude ? -size : size;
}

// Whether element `other` of a group goes before element `own`: ties to the lower index.
static SPARSEKERN_HOST_DEVICE bool NmGoesBefore(int32_t other_key, int other, int32_t own_key,
                                                int own) {
  return other < own ? other_key >= own_key : other_key > own_key;
}

// Where a thread's element is, when every row is padded to whole groups of m.
struct NmMaskElement {
  int64_t row, col;
};
static SPARSEKERN_HOST_DEVICE NmMaskElement NmMaskElementAt(int64_t thread, int64_t cols, int m) {
  const int64_t padded = (cols + m - 1) / m * m;
  const int64_t row = thread / padded;
  return NmMaskElement{row, thread - row * padded};
}

}  // namespace sparsekern
