// SPDX-License-Identifier: Apache-2.0
// torch's intra-op threads as the core's ParallelFor, so that torch.set_num_threads is obeyed.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "sparsekern/parallel.h"

namespace sparsekern::bind {

inline ParallelFor TorchParallelFor() {
  const auto run = [](void*, int64_t n, void* body_state, void (*body)(void*, int64_t, int64_t)) {
    if (n <= 0) return;
    if (n == 1) {  // spares the way through torch
      body(body_state, 0, 1);
      return;
    }
    // Grain 1: torch makes as many ranges as it has threads, at most n. Nested calls run serially.
    torch::stable::parallel_for(0, n, 1,
                                [&](int64_t begin, int64_t end) { body(body_state, begin, end); });
  };
  return ParallelFor{run, nullptr, static_cast<int>(torch::stable::get_num_threads())};
}

}  // namespace sparsekern::bind
