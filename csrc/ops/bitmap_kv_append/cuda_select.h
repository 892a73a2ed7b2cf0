// SPDX-License-Identifier: Apache-2.0
// How a warp chooses the channels that it keeps of a row, as functions that the host compiles too.
// Lane l has channels l, 32 + l, 64 + l ...: what the lanes say of their j-th channel is word j of
// the mask.
#pragma once

#include <cstdint>

#include "formats/cuda_bitmap_kv.h"

namespace sparsekern::cuda {

constexpr int kKvSelectWords = static_cast<int>(kBitmapKvMaxHeadDim) / 32;

// Elements are compared as the integers that their bits are without the sign.
template <typename Element>
SPARSEKERN_HOST_DEVICE uint32_t KvMagnitude(Element bits) {
  return bits & (~uint32_t{0} >> (33 - 8 * sizeof(Element)));
}

// The lanes below `lane`.
SPARSEKERN_HOST_DEVICE uint32_t KvLanesBelow(int lane) { return (uint32_t{1} << lane) - 1; }

// Whether `lane` keeps its channel of a word: magnitudes above the threshold all, of those at it
// the lowest `ties`.
SPARSEKERN_HOST_DEVICE bool KvKeeps(int lane, uint32_t above, uint32_t equal, int ties) {
  if ((above >> lane & 1) != 0) return true;
  return (equal >> lane & 1) != 0 && KvCount(equal & KvLanesBelow(lane)) < ties;
}

// Chooses the `keep` channels of a row with the largest magnitudes, the lowest of equal ones.
// top: the highest bit that a magnitude may have. reach(j, number): the lanes whose j-th channel is
// inside the row and of that magnitude or more. vote(f): the lanes l for which f(l). emit(j, word,
// before): the channels kept of word j, and how many are kept of the words before.
template <typename Reach, typename Vote, typename Emit>
SPARSEKERN_EMULATED void KvSelect(uint32_t top, int words, int keep, const Reach& reach,
                                  const Vote& vote, const Emit& emit) {
  // The largest number that at least `keep` magnitudes reach, bit by bit.
  uint32_t threshold = 0;
  SPARSEKERN_ROLLED
  for (uint32_t bit = top; bit != 0; bit >>= 1) {
    int count = 0;
    for (int j = 0; j < kKvSelectWords; ++j) {
      if (j < words) count += KvCount(reach(j, threshold | bit));
    }
    if (count >= keep) threshold |= bit;
  }
  int ties = keep;
  for (int j = 0; j < kKvSelectWords; ++j) {
    if (j < words) ties -= KvCount(reach(j, threshold + 1));
  }
  int before = 0;
  for (int j = 0; j < kKvSelectWords; ++j) {
    if (j >= words) break;
    const uint32_t above = reach(j, threshold + 1);
    const uint32_t equal = reach(j, threshold) & ~above;
    const uint32_t word = vote([=](int lane) { return KvKeeps(lane, above, equal, ties); });
    ties -= KvCount(equal);
    emit(j, word, before);
    before += KvCount(word);
  }
}

}  // namespace sparsekern::cuda
