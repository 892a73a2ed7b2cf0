// SPDX-License-Identifier: Apache-2.0
// Decode attention over a pruned KV cache: one query token a sequence.
#pragma once

#include <cstdint>
#include <string>

#include "sparsekern/bitmap_kv.h"
#include "sparsekern/isa.h"
#include "sparsekern/parallel.h"
#include "sparsekern/status.h"

namespace sparsekern {

// out = softmax(scores) V with scores = cap(scale * q K^T), over the tokens of the pages and then
// those of the window; query heads g * (heads / kv_heads) ... of q share KV head g. cap(s) =
// softcap * tanh(s / softcap), or s where softcap is 0.
//
// What was pruned contributes nothing, whatever q or V hold there, infinities and NaN too; what is
// kept multiplies as IEEE 754 says. Sums are in float32; they do not depend on the number of
// threads. A sequence without tokens answers zeros and a log-sum-exp of minus infinity; one whose
// scores are all minus infinity NaN, and the same log-sum-exp.
struct BitmapAttentionArgs {
  DType dtype = DType::kF32;  // of q, out, the window and the pages
  const void* q = nullptr;    // [batch][heads][head_dim]
  int64_t heads = 0;          // a multiple of kv_heads
  // Dense tokens behind those in the pages: [batch][kv_heads][window_slots][head_dim]; token p of
  // a sequence lies in slot p % window_slots. nullptr: none.
  const void* window_k = nullptr;
  const void* window_v = nullptr;
  int64_t window_slots = 0;
  const int64_t* window_lengths = nullptr;  // [batch], 0 to window_slots; nullptr: 0
  const int64_t* starts = nullptr;          // [batch]: first token attended to; nullptr: 0
  float scale = 1.0f;
  float softcap = 0.0f;  // finite, at least 0
  void* out = nullptr;   // [batch][heads][head_dim]
  float* lse = nullptr;  // [batch][heads]: log of the sum of exp(scores), natural; or nullptr
};
Status BitmapAttention(const BitmapKvPages& pages, const BitmapAttentionArgs& args,
                       const ParallelFor& parallel_for);

// The kernel that an ISA mask selects, e.g. "bitmap_attention_bf16__x86_avx512". A pure function.
std::string BitmapAttentionKernelName(DType dtype, IsaMask mask);

}  // namespace sparsekern
