// SPDX-License-Identifier: Apache-2.0
// The pages of pruned KV caches (docs/formats.md, `bitmap_kv`) as CUDA kernels see them. Tables and
// lengths lie on the device, and the host does not look at them: what they may say is checked by
// whoever reads them, so nothing outside the arrays is touched.
#pragma once

#include "base/cuda/host_device.h"
#include "sparsekern/bitmap_kv.h"

namespace sparsekern::cuda {

struct KvPages {
  uint8_t* pages;
  int64_t page_count, kv_heads, page_bytes;
  int64_t v_values, k_masks, v_masks;  // bytes from a page's begin; K's values are there
  const int32_t* table;
  const int64_t* lengths;
  int64_t batch, table_pages;
  int head_dim, k_keep, v_keep, element;
};

inline KvPages KvPagesOf(const BitmapKvPages& p) {
  const BitmapKvLayout& layout = p.layout;
  return KvPages{p.pages,
                 p.page_count,
                 p.kv_heads,
                 layout.page_bytes(),
                 layout.v_values(),
                 layout.k_masks(),
                 layout.v_masks(),
                 p.table,
                 p.lengths,
                 p.batch,
                 p.table_pages,
                 static_cast<int>(layout.head_dim),
                 static_cast<int>(layout.k_keep),
                 static_cast<int>(layout.v_keep),
                 static_cast<int>(layout.element())};
}

// Whether a sequence may have so many tokens, and `more` on top.
SPARSEKERN_HOST_DEVICE bool KvFits(const KvPages& p, int64_t length, int64_t more) {
  const int64_t room = p.table_pages * kBitmapKvTokens;
  return length >= 0 && length <= room && more <= room - length;
}

// Bytes from `pages` to KV head `head` of the page that a sequence's token is in; -1 where the
// table names no page that exists. The token must be inside the table.
SPARSEKERN_HOST_DEVICE int64_t KvPageOf(const KvPages& p, int64_t sequence, int64_t token,
                                        int64_t head) {
  const int64_t page = p.table[sequence * p.table_pages + token / kBitmapKvTokens];
  if (page < 0 || page >= p.page_count) return -1;
  return (page * p.kv_heads + head) * p.page_bytes;
}

// The number of bits set.
SPARSEKERN_HOST_DEVICE int KvCount(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}
SPARSEKERN_HOST_DEVICE int KvCount(uint64_t bits) {
  return KvCount(static_cast<uint32_t>(bits)) + KvCount(static_cast<uint32_t>(bits >> 32));
}

}  // namespace sparsekern::cuda
