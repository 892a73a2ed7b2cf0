// SPDX-License-Identifier: Apache-2.0
// bitmap_attention on CUDA, as bind/ sees it. Pointers are device memory.
#pragma once

#include "ops/bitmap_attention/cuda_plan.h"
#include "sparsekern/bitmap_attention.h"

namespace sparsekern::cuda {

// Floats of the parts' sums, with the two numbers of their weights.
inline int64_t KvPartialFloats(const BitmapKvPages& p, int64_t heads, const KvPlan& plan) {
  return p.batch * heads * plan.parts * (p.layout.head_dim + 2);
}

// As sparsekern::BitmapAttention, what the host knows checked before, but that there is no way to
// raise without waiting for the device: a sequence with a length that is not possible, or with a
// page that does not exist among those with tokens attended to, answers NaN. pages.pages begins at
// a multiple of 16 bytes; partial: KvPartialFloats. Enqueues on `stream` (a cudaStream_t); nullptr
// or the CUDA error's text.
const char* BitmapAttention(const BitmapKvPages& pages, const BitmapAttentionArgs& args,
                            const KvPlan& plan, float* partial, void* stream);

}  // namespace sparsekern::cuda
