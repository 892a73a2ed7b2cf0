// SPDX-License-Identifier: Apache-2.0
// Pruning and packing of tokens, from sm_80 on. A warp takes one token's K or V of one head: loads
// it once, finds the threshold by 15 or 31 votes over registers, and stores what it keeps. Nothing
// waits for the host. In decoding it is limited by the latency of its votes, some microseconds
// whatever the batch; for prompts by votes too, about 16 instructions a channel and lane.
#include <cuda_runtime.h>

#include "ops/bitmap_kv_append/cuda_append.h"
#include "ops/bitmap_kv_append/cuda_select.h"

namespace sparsekern::cuda {
namespace {

constexpr int kWarps = 8;
constexpr uint32_t kAll = 0xffffffffu;

template <typename Element>
__global__ void __launch_bounds__(kWarps * 32)
    AppendKernel(const KvPages p, const BitmapKvAppendArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (row >= 2 * p.batch * p.kv_heads * a.tokens) return;
  const bool is_v = row % 2 != 0;
  row /= 2;
  const int64_t t = row % a.tokens;
  const int64_t h = row / a.tokens % p.kv_heads;
  const int64_t b = row / a.tokens / p.kv_heads;
  const int64_t length = p.lengths[b];
  if (!KvFits(p, length, a.tokens)) return;
  const int64_t page = KvPageOf(p, b, length + t, h);
  if (page < 0) return;

  const auto* from = is_v ? static_cast<const Element*>(a.v) + b * a.v_strides[0] +
                                h * a.v_strides[1] + t * a.v_strides[2]
                          : static_cast<const Element*>(a.k) + b * a.k_strides[0] +
                                h * a.k_strides[1] + t * a.k_strides[2];
  const int keep = is_v ? p.v_keep : p.k_keep;
  const int words = (p.head_dim + 31) / 32;
  Element raw[kKvSelectWords];
#pragma unroll
  for (int j = 0; j < kKvSelectWords; ++j) {
    const int channel = j * 32 + lane;
    raw[j] = channel < p.head_dim ? from[channel] : Element{0};
  }
  const auto reach = [&](int j, uint32_t number) {
    return __ballot_sync(kAll, j * 32 + lane < p.head_dim && KvMagnitude(raw[j]) >= number);
  };
  const auto vote = [&](const auto& f) { return __ballot_sync(kAll, f(lane)); };
  const auto at = static_cast<int>((length + t) % kBitmapKvTokens);
  auto* values = reinterpret_cast<Element*>(p.pages + page + (is_v ? p.v_values : 0)) + at * keep;
  uint32_t word_of_byte = 0;
  const auto emit = [&](int j, uint32_t word, int before) {
    if ((word >> lane & 1) != 0) values[before + KvCount(word & KvLanesBelow(lane))] = raw[j];
    if (lane / 4 == j) word_of_byte = word;
  };
  constexpr uint32_t kTop = uint32_t{1} << (8 * sizeof(Element) - 2);
  KvSelect(kTop, words, keep, reach, vote, emit);
  if (lane < p.head_dim / 8) {
    uint8_t* masks = p.pages + page + (is_v ? p.v_masks : p.k_masks) + at * (p.head_dim / 8);
    masks[lane] = static_cast<uint8_t>(word_of_byte >> (lane % 4 * 8));
  }
}

}  // namespace

const char* BitmapKvAppend(const BitmapKvPages& pages, const BitmapKvAppendArgs& a, void* stream) {
  const KvPages p = KvPagesOf(pages);
  const int64_t rows = 2 * p.batch * p.kv_heads * a.tokens;
  if (rows == 0) return nullptr;
  const auto blocks = static_cast<unsigned>((rows + kWarps - 1) / kWarps);
  const auto on = static_cast<cudaStream_t>(stream);
  if (p.element == 4) {
    AppendKernel<uint32_t><<<blocks, kWarps * 32, 0, on>>>(p, a);
  } else {
    AppendKernel<uint16_t><<<blocks, kWarps * 32, 0, on>>>(p, a);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sparsekern::cuda
