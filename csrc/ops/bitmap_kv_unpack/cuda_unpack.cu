// SPDX-License-Identifier: Apache-2.0
// Pages to dense K and V, from sm_80 on: a warp takes one token's K or V of one head, a lane the
// channels l, 32 + l ..., whose values lie where the bits below theirs say. Limited by the bytes it
// writes.
#include <cuda_runtime.h>

#include "formats/cuda_bitmap_kv.h"
#include "ops/bitmap_kv_unpack/cuda_unpack.h"

namespace sparsekern::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kWords = static_cast<int>(kBitmapKvMaxHeadDim) / 32;

template <typename Element>
__global__ void __launch_bounds__(kWarps * 32)
    UnpackKernel(const KvPages p, const int64_t tokens, const Element nan, Element* k, Element* v) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (row >= 2 * p.batch * p.kv_heads * tokens) return;
  const bool is_v = row % 2 != 0;
  row /= 2;
  Element* out = (is_v ? v : k) + row * p.head_dim;
  const int64_t t = row % tokens;
  const int64_t h = row / tokens % p.kv_heads;
  const int64_t b = row / tokens / p.kv_heads;
  const int64_t length = p.lengths[b];
  const bool fits = KvFits(p, length, 0) && length <= tokens;
  const int64_t page = fits && t < length ? KvPageOf(p, b, t, h) : -1;
  const int keep = is_v ? p.v_keep : p.k_keep;
  const auto at = static_cast<int>(t % kBitmapKvTokens);
  const uint8_t* values = p.pages + page + (is_v ? p.v_values : 0);
  const uint8_t* masks = p.pages + page + (is_v ? p.v_masks : p.k_masks) + at * (p.head_dim / 8);
  uint32_t word[kWords];
  int kept = 0;
#pragma unroll
  for (int j = 0; j < kWords; ++j) {
    const int channel = j * 32 + lane;
    const bool bit =
        page >= 0 && channel < p.head_dim && (masks[channel / 8] >> (channel % 8) & 1) != 0;
    word[j] = __ballot_sync(0xffffffffu, bit);
    kept += KvCount(word[j]);
  }
  const bool good = page >= 0 && kept == keep;
  const Element rest = good || (fits && t >= length) ? Element{0} : nan;
  int before = 0;
#pragma unroll
  for (int j = 0; j < kWords; ++j) {
    const int channel = j * 32 + lane;
    if (channel >= p.head_dim) break;
    Element value = rest;
    if (good && (word[j] >> lane & 1) != 0) {
      const int i = before + KvCount(word[j] & ((uint32_t{1} << lane) - 1));
      value = reinterpret_cast<const Element*>(values)[at * keep + i];
    }
    out[channel] = value;
    before += KvCount(word[j]);
  }
}

template <typename Element>
void Launch(const KvPages& p, int64_t tokens, uint32_t nan, void* k, void* v, cudaStream_t on) {
  const int64_t rows = 2 * p.batch * p.kv_heads * tokens;
  UnpackKernel<Element>
      <<<static_cast<unsigned>((rows + kWarps - 1) / kWarps), kWarps * 32, 0, on>>>(
          p, tokens, static_cast<Element>(nan), static_cast<Element*>(k), static_cast<Element*>(v));
}

}  // namespace

const char* BitmapKvUnpack(const BitmapKvPages& pages, int64_t tokens, void* k, void* v,
                           void* stream) {
  const KvPages p = KvPagesOf(pages);
  if (p.batch * p.kv_heads * tokens == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (pages.layout.dtype) {
    case DType::kF32: Launch<uint32_t>(p, tokens, 0x7fc00000u, k, v, on); break;
    case DType::kBF16: Launch<uint16_t>(p, tokens, 0x7fc0u, k, v, on); break;
    default: Launch<uint16_t>(p, tokens, 0x7e00u, k, v, on); break;
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sparsekern::cuda
