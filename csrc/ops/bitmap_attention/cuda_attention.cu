// SPDX-License-Identifier: Apache-2.0
// Decode attention over pages and window, from sm_80 on. Its limit is the pages' bytes over the
// memory bandwidth at half the channels kept; below that instructions: by count 55 to 60 of a warp
// for a token of 128 channels, of 65 and 47 that an H200 has time for at 50 and 70 % sparsity.
//
// A warp takes tiles of 16 tokens of one sequence and KV head, for up to 8 query heads, and keeps
// its sums in registers. The kept values of the next tile are on their way to shared memory
// (cp.async) and its masks to registers while one is multiplied. Lanes expand what they need from
// shared memory straight into the operands of mma.m16n8k16 (cuda_index.h): nothing is written
// expanded, and a pruned channel costs a bit's test. Weights multiply V as two numbers of 16 bits,
// so that they keep the accuracy of fp32. fp32 pages take the same way with multiply-adds instead,
// and so do scores of a q that is not finite: what was pruned must not meet it.
//
// A sequence's tiles are split over parts, whose sums a second kernel adds up in order. The split
// depends on sizes and on the sequence's length: results are deterministic.
#include <cuda_runtime.h>

#include "base/cuda/dense_mma.h"
#include "base/cuda/launch.h"
#include "base/cuda/numbers.h"
#include "ops/bitmap_attention/cuda_attention.h"

namespace sparsekern::cuda {
namespace {

constexpr uint32_t kAll = 0xffffffffu;
constexpr int kThreads = kKvMaxWarps * 32;

struct Call {
  KvPages pages;
  BitmapAttentionArgs args;
  KvPlan plan;
  float* sums;         // [batch][heads][parts][head_dim]
  KvWeights* weights;  // [batch][heads][parts]
  uint32_t k_reciprocal, v_reciprocal;
};

template <typename E>
using BitsOf = std::conditional_t<sizeof(E) == 4, uint32_t, uint16_t>;

template <typename E>
__device__ __forceinline__ float FloatOf(uint32_t bits) {
  if constexpr (sizeof(E) == 4) {
    return __uint_as_float(bits);
  } else if constexpr (__is_same(E, __half)) {
    return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
  } else {
    return __uint_as_float(bits << 16);
  }
}

// Two numbers as a register of 16-bit elements, and what that loses of them as another.
template <typename E>
__device__ __forceinline__ void Split(float x, float y, uint32_t* high, uint32_t* low) {
  const auto bits = [](float v) -> uint32_t {
    if constexpr (__is_same(E, __half)) {
      return __half_as_ushort(__float2half_rn(v));
    } else {
      return __bfloat16_as_ushort(__float2bfloat16_rn(v));
    }
  };
  const uint32_t hx = bits(x), hy = bits(y);
  *high = hx | hy << 16;
  *low = bits(x - FloatOf<E>(hx)) | bits(y - FloatOf<E>(hy)) << 16;
}

__device__ __forceinline__ uint32_t Transposed(uint32_t matrix) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(out) : "r"(matrix));
  return out;
}

// Values in shared memory, as KvTake's pointers are; of 16 bits with predicates, which the compiler
// does not always make of a branch: lanes that keep nothing do not load, and meet in no bank.
template <typename Element>
struct Stream {
  uint32_t address;
};
__device__ __forceinline__ uint32_t KvTake(Stream<uint16_t>& next, uint32_t kept) {
  uint32_t bits;
  asm volatile(
      "{\n\t.reg .pred kept;\n\t"
      "setp.ne.u32 kept, %2, 0;\n\t"
      "mov.u32 %0, 0;\n\t"
      "@kept ld.shared.u16 %0, [%1];\n\t"
      "@kept add.u32 %1, %1, 2;\n\t}"
      : "=&r"(bits), "+r"(next.address)
      : "r"(kept)
      : "memory");
  return bits;
}
__device__ __forceinline__ uint32_t KvTake(Stream<uint32_t>& next, uint32_t kept) {
  uint32_t bits;
  asm volatile(
      "{\n\t.reg .pred kept;\n\t"
      "setp.ne.u32 kept, %2, 0;\n\t"
      "mov.u32 %0, 0;\n\t"
      "@kept ld.shared.u32 %0, [%1];\n\t"
      "@kept add.u32 %1, %1, 4;\n\t}"
      : "=&r"(bits), "+r"(next.address)
      : "r"(kept)
      : "memory");
  return bits;
}

// Which channels of its rows a lane has in a tile.
template <int DP>
struct Share {
  KvKBits<DP> k_bits[2];
  KvVBits v_bits[4];
};

// The sum over the lanes before this one, Stride apart in rows of Lanes.
template <int Lanes, int Stride>
__device__ __forceinline__ uint32_t SumBefore(uint32_t counts, int place) {
  return KvSumBefore<Lanes>(counts, [&](uint32_t x, int n) {
    const uint32_t other = __shfl_up_sync(kAll, x, static_cast<unsigned>(n * Stride));
    return place >= n ? other : 0u;
  });
}

// One unit of work of one warp.
template <typename E, int DP>
class Warp {
 public:
  using Element = BitsOf<E>;
  static constexpr bool kTensorCores = sizeof(E) == 2;
  static constexpr float kScale = __is_same(E, __half) ? kKvHalfWeightScale : 1.0f;
  static constexpr int kSteps = DP / 16;

  // q: of the chunk's first head; heads: of the chunk.
  __device__ Warp(const Call& call, int lane, const Element* q, int heads)
      : call_(call), lane_(lane), q_(q), heads_(heads) {
    for (auto& w : weights_) w = KvWeights{kKvLowest, 0.0f};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      for (float& x : acc_[i]) x = 0.0f;
    }
    if constexpr (kTensorCores) {
      const int head_dim = call.pages.head_dim;
      const bool mine = lane / 4 < heads;
      bool finite = true;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        for (int half = 0; half < 2; ++half) {
          uint32_t pair = 0;
          for (int j = 0; j < 2; ++j) {
            const int channel = KvKChannel<DP>(lane) + 4 * i + 2 * half + j;
            if (!mine || channel >= head_dim) continue;
            const uint32_t bits = q[lane / 4 * head_dim + channel];
            finite = finite && isfinite(FloatOf<E>(bits));
            pair |= bits << (16 * j);
          }
          q_operand_[i][half] = pair;
        }
      }
      finite_ = __all_sync(kAll, finite);
    }
  }

  // A tile whose rows of K (V) lie k_stride (v_stride) bytes apart in shared memory.
  __device__ __forceinline__ void Add(const Share<DP>& share, KvRows rows, uint32_t k_tile,
                                      int k_stride, uint32_t v_tile, int v_stride) {
    constexpr uint32_t kSize = sizeof(Element);
    const uint32_t k_counts = static_cast<uint32_t>(KvCount(share.k_bits[0])) |
                              static_cast<uint32_t>(KvCount(share.k_bits[1])) << 16;
    const uint32_t k_before = SumBefore<4, 1>(k_counts, lane_ % 4);
    uint32_t v_counts = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v_counts |= static_cast<uint32_t>(KvCount(share.v_bits[i])) << (8 * i);
    }
    const uint32_t v_before = SumBefore<8, 4>(v_counts, lane_ / 4);
    Stream<Element> k[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      k[i].address = k_tile + static_cast<uint32_t>(KvKRow(lane_, i) * k_stride) +
                     (k_before >> (16 * i) & 0xffff) * kSize;
    }
    float s[4] = {};
    if (kTensorCores && finite_) {
      if constexpr (kTensorCores) {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          uint32_t a[4];
          KvKFragment(k, share.k_bits, i, a);
          Multiply<E>(s, a, q_operand_[i][0], q_operand_[i][1]);
        }
      }
    } else {
      Products(share, k, s);
    }
    float move[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float scores[2];
      float top = kKvLowest;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scores[i] = rows.Have(KvKRow(lane_, i))
                        ? KvScore(s[2 * i + j], call_.args.scale, call_.args.softcap)
                        : -INFINITY;
        top = fmaxf(top, scores[i]);
      }
#pragma unroll
      for (int d = 4; d < 32; d *= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, d));
      move[j] = KvRaise(&weights_[j], top, scores);
      s[j] = scores[0];
      s[2 + j] = scores[1];
    }
    if (__any_sync(kAll, move[0] != 1.0f || move[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        for (int j = 0; j < 4; ++j) acc_[i][j] *= move[j % 2];
      }
    }
    Stream<Element> v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i].address = v_tile + static_cast<uint32_t>(KvVRow(lane_, i) * v_stride) +
                     (v_before >> (8 * i) & 0xff) * kSize;
    }
    if constexpr (kTensorCores) {
      uint32_t high[2], low[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Split<E>(s[2 * i] * kScale, s[2 * i + 1] * kScale, &high[i], &low[i]);
        high[i] = Transposed(high[i]);
        low[i] = Transposed(low[i]);
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint32_t a[4];
        KvVFragment(v, share.v_bits, i, a);
        Multiply<E>(acc_[i], a, high[0], high[1]);
        Multiply<E>(acc_[i], a, low[0], low[1]);
      }
    } else {
      AddValues(share, v, s);
    }
  }

  // The sums of the heads to their places: head h's is `stride` after that of head h - 1.
  __device__ __forceinline__ void Store(bool good, float* sums, KvWeights* weights,
                                        int64_t stride) const {
    const int head_dim = call_.pages.head_dim;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      KvWeights w = weights_[j];
#pragma unroll
      for (int d = 4; d < 32; d *= 2) w.sum += __shfl_xor_sync(kAll, w.sum, d);
      if (!good) w.sum = QuietNaN();
      const int head = KvHead(lane_, j);
      if (head >= heads_) continue;
      if (lane_ / 4 == 0) weights[head * stride] = w;
      float* row = sums + head * stride * head_dim;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int channel = KvVChannel<DP>(lane_) + 2 * i;
        if (channel >= head_dim) break;  // even, as head_dim is
        *reinterpret_cast<float2*>(row + channel) =
            make_float2(acc_[i][j] / kScale, acc_[i][2 + j] / kScale);
      }
    }
  }

 private:
  // Products with kept channels alone, one at a time; of a few heads at once, so that registers
  // suffice where this is the rare way.
  __device__ __forceinline__ void Products(const Share<DP>& share,
                                           const Stream<Element> (&begin)[2], float (&s)[4]) {
    constexpr int kAtOnce = kTensorCores ? 2 : kKvHeads;
    const int head_dim = call_.pages.head_dim;
    SPARSEKERN_ROLLED
    for (int first = 0; first < kKvHeads; first += kAtOnce) {
      float dot[2][kAtOnce] = {};
      Stream<Element> k[2] = {begin[0], begin[1]};
      const Element* q = q_ + first * head_dim + KvKChannel<DP>(lane_);
      SPARSEKERN_ROLLED
      for (int c = 0; c < DP / 4; ++c) {
        uint32_t kept[2];
        float x[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          kept[i] = static_cast<uint32_t>(share.k_bits[i] >> c) & 1;
          x[i] = FloatOf<E>(KvTake(k[i], kept[i]));
        }
        if ((kept[0] | kept[1]) == 0) continue;
#pragma unroll
        for (int h = 0; h < kAtOnce; ++h) {
          if (first + h >= heads_) break;
          const float y = FloatOf<E>(q[h * head_dim + c]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (kept[i] != 0) dot[i][h] += x[i] * y;
          }
        }
      }
      __syncwarp();
#pragma unroll
      for (int h = 0; h < kAtOnce; ++h) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float sum = dot[i][h];
          sum += __shfl_xor_sync(kAll, sum, 1);
          sum += __shfl_xor_sync(kAll, sum, 2);
          if ((first + h) / 2 == lane_ % 4) s[2 * i + h % 2] = sum;
        }
      }
    }
  }

  // acc += weights times V, for fp32: lanes of the same channels exchange their tokens.
  __device__ __forceinline__ void AddValues(const Share<DP>& share, Stream<Element> (&v)[4],
                                            const float (&s)[4]) {
    float weight[kKvTile][2];
#pragma unroll
    for (int row = 0; row < kKvTile; ++row) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        weight[row][j] = __shfl_sync(kAll, s[row / 8 * 2 + j], row % 8 * 4 + lane_ % 4);
      }
    }
#pragma unroll
    for (int c = 0; c < DP / 8; ++c) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float x = FloatOf<E>(KvTake(v[r], KvBit(share.v_bits[r], c)));
#pragma unroll
        for (int from = 0; from < 4; ++from) {
          const float other = __shfl_sync(kAll, x, lane_ / 4 * 4 + from);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            acc_[c / 2][c % 2 * 2 + j] += other * weight[KvVRow(from, r)][j];
          }
        }
      }
    }
  }

  const Call& call_;
  int lane_;
  const Element* q_;
  int heads_;
  bool finite_ = false;
  uint32_t q_operand_[kTensorCores ? kSteps : 1][2];
  float acc_[kSteps][4];
  KvWeights weights_[2];
};

template <typename E, int DP>
constexpr int kBlocks = KvResidentWarps(DP, static_cast<int>(sizeof(E))) / kKvMaxWarps;

template <typename E, int DP>
__global__ void __launch_bounds__(kThreads, kBlocks<E, DP>)
    PartsKernel(const __grid_constant__ Call call) {
  using Element = BitsOf<E>;
  extern __shared__ __align__(128) uint8_t shared[];
  const KvPages& p = call.pages;
  const BitmapAttentionArgs& a = call.args;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int64_t unit = static_cast<int64_t>(blockIdx.x) * call.plan.warps + warp;
  if (unit >= call.plan.units) return;
  const int64_t part = unit % call.plan.parts;
  unit /= call.plan.parts;
  const int64_t chunk = unit % call.plan.chunks;
  unit /= call.plan.chunks;
  const int64_t h = unit % p.kv_heads;
  const int64_t b = unit / p.kv_heads;

  const int64_t group = a.heads / p.kv_heads;
  const int64_t head = b * a.heads + h * group + chunk * kKvHeads;
  const int64_t left = group - chunk * kKvHeads;
  const int heads = left < kKvHeads ? static_cast<int>(left) : kKvHeads;
  Warp<E, DP> work(call, lane, static_cast<const Element*>(a.q) + head * p.head_dim, heads);

  const KvSequence s = KvSequenceOf(p, b, a.window_lengths, a.window_slots, a.starts);
  const KvSpan tiles = KvPartTiles(s, part, call.plan.parts);
  const int page_tiles = KvPageTiles(s);
  bool good = s.fits;

  const int k_bytes = p.k_keep * p.element, v_bytes = p.v_keep * p.element;
  const int dense_bytes = p.head_dim * p.element;
  const auto memory = static_cast<uint32_t>(__cvta_generic_to_shared(shared)) +
                      static_cast<uint32_t>(warp * KvWarpBytes(p));
  const auto page_of = [&](int tile) -> int64_t {
    return tile < tiles.end && tile < page_tiles ? KvPageOf(p, b, int64_t{tile} * kKvTile, h) : -1;
  };
  const auto stage_of = [&](int tile) {
    return tile < page_tiles ? tile % 2 * KvStageBytes(p) : 0;
  };
  // A tile's masks go to registers, the values of one in a page on their way to shared memory.
  const auto fetch = [&](int tile, int64_t page, Share<DP>* share) {
    const bool in_pages = tile < page_tiles;
    if (in_pages && page < 0) good = false;
    const bool dense = !in_pages;
    const KvRows rows = dense || page >= 0 ? KvRowsOf(s, tile) : KvRows{0, 0};
    const int first = tile % kKvTilesOfPage * kKvTile;
    const uint8_t* from = p.pages + page;
    const int mask = p.head_dim / 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = KvKRow(lane, i), channel = KvKChannel<DP>(lane);
      share->k_bits[i] = 0;
      if (!rows.Have(row)) continue;
      share->k_bits[i] = dense ? KvAllBits<DP / 4, KvKBits<DP>>(p.head_dim, channel)
                               : KvMaskBits<DP / 4, KvKBits<DP>>(
                                     from + p.k_masks + (first + row) * mask, p.head_dim, channel);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = KvVRow(lane, i), channel = KvVChannel<DP>(lane);
      share->v_bits[i] = 0;
      if (!rows.Have(row)) continue;
      share->v_bits[i] = dense ? KvAllBits<DP / 8, KvVBits>(p.head_dim, channel)
                               : KvMaskBits<DP / 8, KvVBits>(
                                     from + p.v_masks + (first + row) * mask, p.head_dim, channel);
    }
    if (dense || page < 0) return;
    const uint32_t to = memory + static_cast<uint32_t>(stage_of(tile));
    const uint8_t* k = from + first * k_bytes;
    SPARSEKERN_ROLLED
    for (int i = lane; i < k_bytes; i += 32) {
      CopyAsync(to + static_cast<uint32_t>(KvCopyTo(i, call.k_reciprocal)), k + 16 * i, true);
    }
    const uint8_t* v = from + p.v_values + first * v_bytes;
    const uint32_t v_to = to + static_cast<uint32_t>(KvTileBytes(k_bytes));
    SPARSEKERN_ROLLED
    for (int i = lane; i < v_bytes; i += 32) {
      CopyAsync(v_to + static_cast<uint32_t>(KvCopyTo(i, call.v_reciprocal)), v + 16 * i, true);
    }
  };
  // The window is a few tiles at the end, which are not copied ahead.
  const auto copy_dense = [&](int tile) {
    const KvRows rows = KvRowsOf(s, tile);
    const int copies = dense_bytes / 16;
    SPARSEKERN_ROLLED
    for (int i = lane; i < kKvTile * copies; i += 32) {
      const int row = i / copies;
      if (!rows.Have(row)) continue;
      const int64_t slot = (KvTileFirst(s, tile) + row) % a.window_slots;
      const int64_t at =
          ((b * p.kv_heads + h) * a.window_slots + slot) * dense_bytes + i % copies * 16;
      const uint32_t to =
          memory + static_cast<uint32_t>(row * KvRowStride(dense_bytes) + i % copies * 16);
      CopyAsync(to, static_cast<const uint8_t*>(a.window_k) + at, true);
      CopyAsync(to + static_cast<uint32_t>(KvTileBytes(dense_bytes)),
                static_cast<const uint8_t*>(a.window_v) + at, true);
    }
  };

  Share<DP> next = {};
  int64_t page = page_of(tiles.begin);
  if (tiles.begin < tiles.end) fetch(tiles.begin, page, &next);
  CommitCopies();
  page = page_of(tiles.begin + 1);
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    const Share<DP> share = next;
    if (tile >= page_tiles) copy_dense(tile);
    if (tile + 1 < tiles.end) fetch(tile + 1, page, &next);
    CommitCopies();
    page = page_of(tile + 2);
    if (tile < page_tiles) {
      WaitCopies<1>();
    } else {
      WaitCopies<0>();
    }
    __syncwarp();
    const int k_row = tile < page_tiles ? k_bytes : dense_bytes;
    const int v_row = tile < page_tiles ? v_bytes : dense_bytes;
    const uint32_t k = memory + static_cast<uint32_t>(stage_of(tile));
    work.Add(share, KvRowsOf(s, tile), k, KvRowStride(k_row),
             k + static_cast<uint32_t>(KvTileBytes(k_row)), KvRowStride(v_row));
    __syncwarp();  // the tile's place is written to again
  }
  WaitCopies<0>();
  const int64_t place = head * call.plan.parts + part;
  work.Store(good, call.sums + place * p.head_dim, call.weights + place, call.plan.parts);
}

constexpr int kMergeWarps = 4;

// A warp merges the parts of one query head.
__global__ void __launch_bounds__(kMergeWarps * 32) MergeKernel(const __grid_constant__ Call call) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t head =
      static_cast<int64_t>(blockIdx.x) * kMergeWarps + static_cast<int>(threadIdx.x) / 32;
  const KvPages& p = call.pages;
  const BitmapAttentionArgs& a = call.args;
  if (head >= p.batch * a.heads) return;
  const KvWeights* parts = call.weights + head * call.plan.parts;
  const float* sums = call.sums + head * call.plan.parts * p.head_dim;
  constexpr int kChannels = static_cast<int>(kBitmapKvMaxHeadDim) / 32;
  float acc[kChannels] = {};
  float most = kKvLowest, total = 0.0f;
  for (int64_t i = 0; i < call.plan.parts; ++i) most = parts[i].m > most ? parts[i].m : most;
  for (int64_t i = 0; i < call.plan.parts; ++i) {
    const KvWeights part = parts[i];
    if (part.sum == 0.0f) continue;
    const float factor = KvPartFactor(part, most);
    total += part.sum * factor;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const int channel = c * 32 + lane;
      if (channel < p.head_dim) acc[c] += sums[i * p.head_dim + channel] * factor;
    }
  }
  const KvSequence s = KvSequenceOf(p, head / a.heads, a.window_lengths, a.window_slots, a.starts);
  const KvResult result = KvFinish(most, total, s.start < s.length + s.window);
  for (int c = 0; c < kChannels; ++c) {
    const int channel = c * 32 + lane;
    if (channel < p.head_dim) {
      StoreFloat(a.out, head * p.head_dim + channel, a.dtype, acc[c] * result.factor);
    }
  }
  if (lane == 0 && a.lse != nullptr) a.lse[head] = result.lse;
}

template <typename E, int DP>
cudaError_t LaunchFor(const Call& call, cudaStream_t stream) {
  const int bytes = call.plan.shared_bytes;
  const cudaError_t error = AllowSharedMemory(PartsKernel<E, DP>);
  if (error != cudaSuccess) return error;
  const int64_t blocks = (call.plan.units + call.plan.warps - 1) / call.plan.warps;
  PartsKernel<E, DP><<<static_cast<unsigned>(blocks), call.plan.warps * 32, bytes, stream>>>(call);
  return cudaGetLastError();
}

template <typename E>
cudaError_t Launch(const Call& call, cudaStream_t stream) {
  const int padded = KvPaddedHeadDim(call.pages.head_dim, call.pages.element);
  if constexpr (sizeof(E) == 2) {
    if (padded == 64) return LaunchFor<E, 64>(call, stream);
  }
  return padded == 128 ? LaunchFor<E, 128>(call, stream) : LaunchFor<E, 256>(call, stream);
}

}  // namespace

const char* BitmapAttention(const BitmapKvPages& pages, const BitmapAttentionArgs& args,
                            const KvPlan& plan, float* partial, void* stream) {
  if (plan.units == 0) return nullptr;
  const int64_t rows = pages.batch * args.heads;
  const int64_t head_dim = pages.layout.head_dim;
  Call call{KvPagesOf(pages),
            args,
            plan,
            partial,
            reinterpret_cast<KvWeights*>(partial + rows * plan.parts * head_dim),
            KvReciprocal(static_cast<int>(pages.layout.k_keep * pages.layout.element())),
            KvReciprocal(static_cast<int>(pages.layout.v_keep * pages.layout.element()))};
  const auto on = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaErrorInvalidValue;
  switch (pages.layout.dtype) {
    case DType::kF32: error = Launch<float>(call, on); break;
    case DType::kBF16: error = Launch<__nv_bfloat16>(call, on); break;
    case DType::kF16: error = Launch<__half>(call, on); break;
    default: break;
  }
  if (error == cudaSuccess) {
    MergeKernel<<<static_cast<unsigned>((rows + kMergeWarps - 1) / kMergeWarps), kMergeWarps * 32,
                  0, on>>>(call);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sparsekern::cuda
