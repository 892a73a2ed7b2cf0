// SPDX-License-Identifier: Apache-2.0
// What an ISA file offers to the driver bitmap_attention.cc, beside its tile kernels.
#pragma once

#include <cstdint>

#include "base/simd/tile_kernels.h"

namespace sparsekern {

// Query heads that share a KV head are taken in chunks of four (the last filled up with zeros), or
// alone where only one is left.
enum : int { kKvChunk = 4, kKvChunkSizes = 2 };
constexpr int KvChunkIndex(int heads) { return heads == 1 ? 0 : 1; }

// The packed K or V rows of one page and head.
struct KvRows {
  const uint8_t* values;  // [64][keep]
  const uint8_t* masks;   // [64][head_dim / 8]
  int keep;
  int head_dim;
};

// In all of these: tokens begin <= t < end; H heads (1 or 4); rows of fp32 that are `stride` apart,
// head_dim rounded up to 16, zeros from head_dim on; s and p: [end - begin][H], room for 16 more.
//
// s = the products of q[H] with each token's row. kept: nullptr, or where the expanded rows go.
using KvScoresFn = void (*)(const KvRows& rows, int begin, int end, const float* q, int64_t stride,
                            float* s, float* kept);
// acc[H] += p times each token's row.
using KvValuesFn = void (*)(const KvRows& rows, int begin, int end, const float* p, int64_t stride,
                            float* acc, float* kept);
// The same with rows that lie there expanded: kept[tokens].
using KvDenseScoresFn = void (*)(const float* kept, int tokens, const float* q, int64_t stride,
                                 float* s);
using KvDenseValuesFn = void (*)(const float* kept, int tokens, const float* p, int64_t stride,
                                 float* acc);
// Raw products s become weights exp(cap(scale * s) - maximum), where m[H] is raised to their
// maximum; sum[H] (of weights) and acc[H] move to the new maximum, and the weights are added to
// sum.
using KvSoftmaxFn = void (*)(float* s, int tokens, float scale, float softcap, float* m, float* sum,
                             float* acc, int64_t stride);
// Puts the channels of a row into the order that the kernels have them in, or back.
using KvOrderFn = void (*)(float* row, int head_dim);

// One row of kernels.inc. [0]: one head, [1]: four; the kernels that keep rows are for four.
struct BitmapAttentionKernels {
  const TileKernels& tiles;
  KvScoresFn scores[3][kKvChunkSizes];  // [DType]
  KvValuesFn values[3][kKvChunkSizes];
  KvScoresFn scores_keep[3];
  KvValuesFn values_keep[3];
  KvDenseScoresFn dense_scores[kKvChunkSizes];
  KvDenseValuesFn dense_values[kKvChunkSizes];
  KvSoftmaxFn softmax[kKvChunkSizes];
  // [DType]: q, acc and expanded rows are in an order of channels of their own; nullptr: they are
  // not.
  KvOrderFn arrange[3];
  KvOrderFn restore[3];
};

#define SPARSEKERN_BITMAP_ATTENTION_KERNELS(isa_flag, isa_suffix) \
  extern const BitmapAttentionKernels kBitmapAttentionKernels_##isa_suffix;
#include "ops/bitmap_attention/kernels.inc"
#undef SPARSEKERN_BITMAP_ATTENTION_KERNELS

}  // namespace sparsekern
