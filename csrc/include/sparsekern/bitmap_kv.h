// SPDX-License-Identifier: Apache-2.0
// The format of pruned KV caches (docs/formats.md, `bitmap_kv` version 1): pages of 64 tokens.
#pragma once

#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/status.h"

namespace sparsekern {

enum : int64_t { kBitmapKvTokens = 64, kBitmapKvMaxHeadDim = 256 };

// Where what lies in a page of one KV head. A token's row is `keep` values, channels ascending, and
// head_dim / 8 bytes of mask, bit i of byte j = channel 8 j + i kept.
struct BitmapKvLayout {
  DType dtype = DType::kF32;  // kF32, kBF16 or kF16
  int64_t head_dim = 0;       // a multiple of 8, 8 to 256
  int64_t k_keep = 0;         // channels kept of each token's K, 1 to head_dim
  int64_t v_keep = 0;

  int64_t element() const { return static_cast<int64_t>(SizeOf(dtype)); }
  int64_t row_mask() const { return head_dim / 8; }
  int64_t k_values() const { return 0; }
  int64_t v_values() const { return kBitmapKvTokens * k_keep * element(); }
  int64_t k_masks() const { return v_values() + kBitmapKvTokens * v_keep * element(); }
  int64_t v_masks() const { return k_masks() + kBitmapKvTokens * row_mask(); }
  int64_t page_bytes() const { return v_masks() + kBitmapKvTokens * row_mask(); }
};

// Elements of `dtype` in a page of one KV head; a page is a whole number of 64 bytes.
static inline int64_t BitmapKvPageElements(const BitmapKvLayout& layout) {
  return layout.page_bytes() / layout.element();
}

// A pool's pages and what each sequence has of them. pages: [page_count][kv_heads][page bytes];
// table: [batch][table_pages], of which a sequence uses the first ceil(length / 64); lengths:
// [batch], tokens.
struct BitmapKvPages {
  BitmapKvLayout layout;
  uint8_t* pages = nullptr;  // written by appending only
  int64_t page_count = 0;
  int64_t kv_heads = 0;
  const int32_t* table = nullptr;
  const int64_t* lengths = nullptr;
  int64_t batch = 0;
  int64_t table_pages = 0;

  uint8_t* Page(int64_t sequence, int64_t page, int64_t head) const {
    const int64_t index = table[sequence * table_pages + page];
    return pages + (index * kv_heads + head) * layout.page_bytes();
  }
};

// kInvalidValue, naming `op`, unless the layout is one, every length with `more` tokens on top fits
// the table, and the table names pages that exist.
Status CheckBitmapKv(const char* op, const BitmapKvPages& pages, int64_t more);

// The dense K and V: [batch][kv_heads][tokens][head_dim], zeros where pruned and beyond a
// sequence's length. kInvalidValue when a length is above `tokens` or a mask keeps another number
// of channels than the layout says: what a restored cache has to be checked for, since kernels do
// not look (such a page only makes them add wrong values of the same page). Either of k and v may
// be nullptr.
Status BitmapKvUnpack(const BitmapKvPages& pages, int64_t tokens, void* k, void* v);

}  // namespace sparsekern
