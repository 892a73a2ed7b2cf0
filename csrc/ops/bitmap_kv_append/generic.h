// SPDX-License-Identifier: Apache-2.0
// The bitmap_kv_append kernel, written once as a `static` template that each ISA file compiles with
// its own flags (ops/csr_spmm/generic.h says why `static`). The loops are plain so that the
// compiler makes vectors of them.
//
// The threshold is found bit by bit from the top: the largest key that at least `keep` keys reach.
// 15 or 31 counts over keys that stay in the first-level cache; sorting would take several times as
// much, and would need the index for ties. Compute-bound; a token of 8 heads costs about a
// hundredth of attending to 4096 tokens.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/bitmap_kv_append/kernels.h"

namespace sparsekern {

template <typename Key>
static inline void PruneRow(const void* row, int head_dim, int keep, void* values, uint8_t* mask) {
  constexpr int kMost = 256;
  constexpr Key kMagnitude = static_cast<Key>(static_cast<Key>(~Key{0}) >> 1);
  Key raw[kMost];
  alignas(64) Key keys[kMost];
  std::memcpy(raw, row, static_cast<size_t>(head_dim) * sizeof(Key));
  for (int i = 0; i < head_dim; ++i) keys[i] = raw[i] & kMagnitude;
  // Padding is 0, which reaches no candidate.
  const int whole = (head_dim + 63) / 64 * 64;
  for (int i = head_dim; i < whole; ++i) keys[i] = 0;
  Key threshold = 0;
  for (Key bit = static_cast<Key>(kMagnitude ^ (kMagnitude >> 1)); bit != 0;
       bit = static_cast<Key>(bit >> 1)) {
    const Key candidate = static_cast<Key>(threshold | bit);
    Key reach = 0;
    for (int i = 0; i < whole; ++i) reach = static_cast<Key>(reach + (keys[i] >= candidate));
    if (reach >= static_cast<Key>(keep)) threshold = candidate;
  }
  Key above = 0;
  for (int i = 0; i < whole; ++i) above = static_cast<Key>(above + (keys[i] > threshold));
  int equal = keep - above;  // how many of those at the threshold are kept
  Key kept[kMost + 1];
  int n = 0;
  for (int i = 0; i < head_dim; i += 8) {
    unsigned bits = 0;
    for (int j = 0; j < 8; ++j) {
      const bool tie = keys[i + j] == threshold && equal > 0;
      equal -= tie;
      const bool take = tie || keys[i + j] > threshold;
      kept[n] = raw[i + j];
      n += take;
      bits |= static_cast<unsigned>(take) << j;
    }
    mask[i / 8] = static_cast<uint8_t>(bits);
  }
  std::memcpy(values, kept, static_cast<size_t>(keep) * sizeof(Key));
}

static void PruneRow16(const void* row, int head_dim, int keep, void* values, uint8_t* mask) {
  PruneRow<uint16_t>(row, head_dim, keep, values, mask);
}
static void PruneRow32(const void* row, int head_dim, int keep, void* values, uint8_t* mask) {
  PruneRow<uint32_t>(row, head_dim, keep, values, mask);
}

// The kernel set of an ISA file.
static constexpr BitmapKvAppendKernels MakeBitmapKvAppendKernels(const char* name) {
  return BitmapKvAppendKernels{name, {PruneRow32, PruneRow16, PruneRow16}};
}

}  // namespace sparsekern
