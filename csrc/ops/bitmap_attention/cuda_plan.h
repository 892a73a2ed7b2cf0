// SPDX-License-Identifier: Apache-2.0
// How the work of bitmap_attention on CUDA is cut: host arithmetic on sizes alone, so that nothing
// waits for the device, a call can be captured in a graph, and tests need no device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/bitmap_attention/cuda_index.h"

namespace sparsekern::cuda {

struct KvPlan {
  int64_t parts;     // of each sequence and KV head
  int64_t chunks;    // of the query heads of a KV head, up to 8 in each
  int64_t units;     // of work, each a warp's: batch * kv_heads * chunks * parts
  int warps;         // of a block of threads
  int shared_bytes;  // of a block of threads
};

constexpr int kKvMaxWarps = 2;
constexpr int64_t kKvMaxParts = 256;

// head_dim rounded up to what kernels are compiled for; fp32 is not worth the time for 64.
inline int KvPaddedHeadDim(int head_dim, int element) {
  return head_dim <= 64 && element == 2 ? 64 : head_dim <= 128 ? 128 : 256;
}

// Warps that a multiprocessor has registers for.
constexpr int KvResidentWarps(int padded_head_dim, int element) {
  return padded_head_dim == 64 ? 16 : padded_head_dim == 256 && element == 2 ? 8 : 12;
}

// shared_bytes: the most that a block of threads may have.
inline KvPlan PlanKvAttention(const KvPages& p, int64_t heads, int64_t window_slots,
                              int multiprocessors, int shared_bytes) {
  KvPlan plan;
  const int64_t group = heads / p.kv_heads;
  plan.chunks = (group + kKvHeads - 1) / kKvHeads;
  const int64_t alone = std::max<int64_t>(1, p.batch * p.kv_heads * plan.chunks);
  const int of_warp = KvWarpBytes(p);
  plan.warps = kKvMaxWarps;
  while (plan.warps > 1 && plan.warps * of_warp > shared_bytes) plan.warps /= 2;
  plan.shared_bytes = plan.warps * of_warp;
  // Parts fill the device once, since another round of a few would take as long as one of all. A
  // part is at least a page of the longest sequence that the table has room for: its sums are
  // written and read again.
  const int resident =
      std::max(1, std::min(KvResidentWarps(KvPaddedHeadDim(p.head_dim, p.element), p.element),
                           shared_bytes / of_warp));
  const int64_t wanted = int64_t{resident} * multiprocessors / alone;
  const int64_t most = p.table_pages + (window_slots + kBitmapKvTokens - 1) / kBitmapKvTokens;
  plan.parts = std::max<int64_t>(1, std::min({wanted, most, kKvMaxParts}));
  plan.units = p.batch * p.kv_heads * plan.chunks * plan.parts;
  return plan;
}

}  // namespace sparsekern::cuda
