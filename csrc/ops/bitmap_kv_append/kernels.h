// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the driver bitmap_kv_append.cc.
#pragma once

#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/isa.h"

namespace sparsekern {

// One row of head_dim elements: its `keep` largest as values, which ones as mask.
using PruneRowFn = void (*)(const void* row, int head_dim, int keep, void* values, uint8_t* mask);

// One row of kernels.inc.
struct BitmapKvAppendKernels {
  const char* isa_name;
  PruneRowFn prune[3];  // [DType]
};

#define SPARSEKERN_BITMAP_KV_APPEND_KERNELS(isa_flag, isa_suffix) \
  extern const BitmapKvAppendKernels kBitmapKvAppendKernels_##isa_suffix;
#include "ops/bitmap_kv_append/kernels.inc"
#undef SPARSEKERN_BITMAP_KV_APPEND_KERNELS

}  // namespace sparsekern
