// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the driver nm_mask.cc.
#pragma once

#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/isa.h"

namespace sparsekern {

// m = 2, 4, 8, 16, 32.
enum : int { kNmGroupSizes = 5 };

// The mask of `count` consecutive scores, which begin a group and may end in a short one.
using NmMaskFn = void (*)(const void* score, int64_t count, int n, bool magnitude, uint8_t* mask);

// One row of kernels.inc.
struct NmMaskKernels {
  const char* isa_name;
  IsaMask isa;
  NmMaskFn run[3][kNmGroupSizes];  // [DType][log2 m - 1]
};

#define SPARSEKERN_NM_MASK_KERNELS(isa_flag, isa_suffix) \
  extern const NmMaskKernels kNmMaskKernels_##isa_suffix;
#include "ops/nm_mask/kernels.inc"
#undef SPARSEKERN_NM_MASK_KERNELS

}  // namespace sparsekern
