// SPDX-License-Identifier: Apache-2.0
// Dense K and V out of the pages of a pruned KV cache on CUDA, as bind/ sees it. Pointers are
// device memory.
#pragma once

#include "sparsekern/bitmap_kv.h"

namespace sparsekern::cuda {

// As sparsekern::BitmapKvUnpack, but that there is no way to raise without waiting for the device:
// a token whose mask keeps another number of channels than it must, or whose page does not exist,
// is NaN, and so is all of a sequence whose length is outside of the table or above `tokens`.
// Enqueues on `stream` (a cudaStream_t); nullptr or the CUDA error's text.
const char* BitmapKvUnpack(const BitmapKvPages& pages, int64_t tokens, void* k, void* v,
                           void* stream);

}  // namespace sparsekern::cuda
