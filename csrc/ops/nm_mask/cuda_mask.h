// SPDX-License-Identifier: Apache-2.0
// N:M masks on CUDA, as bind/ sees them. Pointers are device memory.
#pragma once

#include "sparsekern/nm_mask.h"

namespace sparsekern::cuda {

// As sparsekern::NmMask, its arguments checked before. Enqueues on `stream` (a cudaStream_t);
// nullptr or the CUDA error's text.
const char* NmMask(const NmMaskArgs& args, void* stream);

}  // namespace sparsekern::cuda
