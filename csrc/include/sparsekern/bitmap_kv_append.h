// SPDX-License-Identifier: Apache-2.0
// Appends tokens to a pruned KV cache: keeps the largest channels of each and packs them.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/bitmap_kv.h"
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/status.h"

namespace sparsekern {

// k, v: [batch][kv_heads][tokens][head_dim] of the pages' dtype, channels contiguous, other strides
// in elements. Token t of sequence b becomes token lengths[b] + t of its pages; the lengths stay as
// they are. Of each K row the k_keep channels with the largest magnitudes are kept, of each V row
// v_keep: magnitudes are compared as the integers that their bits are without the sign, so a NaN is
// larger than an infinity and never lost to a number; equal ones are kept from the lowest channel
// on. No page may be in the table twice among those written to.
struct BitmapKvAppendArgs {
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t k_strides[3] = {};  // of batch, head, token
  int64_t v_strides[3] = {};
  int64_t tokens = 0;
};
Status BitmapKvAppend(const BitmapKvPages& pages, const BitmapKvAppendArgs& args,
                      const ParallelFor& parallel_for);

// The kernel that an ISA mask selects, e.g. "bitmap_kv_append_bf16__x86_avx512". A pure function.
std::string BitmapKvAppendKernelName(DType dtype, IsaMask mask);

}  // namespace sparsekern
