// SPDX-License-Identifier: Apache-2.0
// bitmap_kv_append on CUDA, as bind/ sees it. Pointers are device memory.
#pragma once

#include "sparsekern/bitmap_kv_append.h"

namespace sparsekern::cuda {

// As sparsekern::BitmapKvAppend, what the host knows checked before. A sequence whose length does
// not leave room for the tokens gets none of them; a token whose page does not exist is not
// written: there is no way to raise without waiting for the device. Enqueues on `stream` (a
// cudaStream_t); nullptr or the CUDA error's text.
const char* BitmapKvAppend(const BitmapKvPages& pages, const BitmapKvAppendArgs& args,
                           void* stream);

}  // namespace sparsekern::cuda
