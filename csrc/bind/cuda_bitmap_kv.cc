// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.bitmap_kv_append, bitmap_kv_unpack and bitmap_attention for CUDA: checks of
// all that the host knows, the plan, allocation; the work is in ops/. Tables and lengths stay on
// the device.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bind/cuda_args.h"
#include "bind/kv_args.h"
#include "ops/bitmap_attention/cuda_attention.h"
#include "ops/bitmap_kv_append/cuda_append.h"
#include "ops/bitmap_kv_unpack/cuda_unpack.h"

namespace sparsekern::bind {
namespace {

constexpr KvPlace kOnCuda = {
    [](const char* op, const char* argument, const Tensor& t, const Tensor& pages) {
      if (!t.is_cuda() || t.get_device_index() != pages.get_device_index()) {
        Wrong(op, argument, "on the device of pages (" + DeviceName(pages) + ")", DeviceName(t));
      }
    },
    false};

bool Aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

// Tokens are counted in 32 bits there.
void CheckTablePages(const char* op, const BitmapKvPages& p) {
  if (p.table_pages > cuda::kKvMaxTablePages) {
    Wrong(op, "table", "at most " + std::to_string(cuda::kKvMaxTablePages) + " pages long",
          std::to_string(p.table_pages));
  }
}

void CheckCapability(const char* op, const OnDevice& device) {
  const int major = device.Attribute(op, cudaDevAttrComputeCapabilityMajor);
  if (major >= 8) return;
  Fail(Status::Unimplemented(
      std::string(op) + ": the CUDA device must have compute capability 8.0 or later, got " +
      std::to_string(major) + "." +
      std::to_string(device.Attribute(op, cudaDevAttrComputeCapabilityMinor))));
}

void AppendCuda(const Tensor& k, const Tensor& v, Tensor pages, const Tensor& table,
                const Tensor& lengths, int64_t k_keep, int64_t v_keep) {
  constexpr char kOp[] = "bitmap_kv_append";
  const KvAppendCall call(kOp, kOnCuda, k, v, pages, table, lengths, k_keep, v_keep);
  const BitmapKvPages& p = call.view;
  ThrowIfError(BitmapKvAppend(call.WithoutSequences(), call.args, Serial()));
  const int64_t room = p.table_pages * kBitmapKvTokens;
  if (call.args.tokens > room && p.batch > 0) {
    Wrong(kOp, "tokens",
          "at most " + std::to_string(room) + " (the table has " + std::to_string(p.table_pages) +
              " pages of 64 tokens)",
          std::to_string(call.args.tokens));
  }
  const OnDevice device(kOp, pages);
  CheckCapability(kOp, device);
  CheckLaunch(kOp, cuda::BitmapKvAppend(p, call.args, device.Stream(kOp)));
}

std::tuple<Tensor, Tensor> UnpackCuda(const Tensor& pages, const Tensor& table,
                                      const Tensor& lengths, int64_t head_dim, int64_t k_keep,
                                      int64_t v_keep, int64_t tokens) {
  constexpr char kOp[] = "bitmap_kv_unpack";
  const KvCall call(kOp, kOnCuda, pages, table, lengths, head_dim, k_keep, v_keep);
  const BitmapKvPages& p = call.view;
  if (tokens < 0) Wrong(kOp, "tokens", "at least 0", std::to_string(tokens));
  const OnDevice device(kOp, pages);
  CheckCapability(kOp, device);
  Tensor k = torch::stable::new_empty(pages, {p.batch, p.kv_heads, tokens, head_dim});
  Tensor v = torch::stable::new_empty(pages, {p.batch, p.kv_heads, tokens, head_dim});
  CheckLaunch(kOp, cuda::BitmapKvUnpack(p, tokens, k.mutable_data_ptr(), v.mutable_data_ptr(),
                                        device.Stream(kOp)));
  return {k, v};
}

std::tuple<Tensor, Tensor> AttentionCuda(const Tensor& q, const Tensor& pages, const Tensor& table,
                                         const Tensor& lengths, int64_t k_keep, int64_t v_keep,
                                         const MaybeTensor& window_k, const MaybeTensor& window_v,
                                         const MaybeTensor& window_lengths,
                                         const MaybeTensor& starts, double scale, double softcap) {
  constexpr char kOp[] = "bitmap_attention";
  KvAttentionCall call(kOp, kOnCuda, q, pages, table, lengths, k_keep, v_keep, window_k, window_v,
                       window_lengths, starts, scale, softcap);
  const BitmapKvPages& p = call.view;
  BitmapAttentionArgs& a = call.args;
  ThrowIfError(BitmapAttention(call.WithoutSequences(), a, Serial()));
  CheckTablePages(kOp, p);
  if (a.window_slots > cuda::kKvMaxSlots) {
    Wrong(kOp, "window_k", "of at most " + std::to_string(cuda::kKvMaxSlots) + " slots",
          std::to_string(a.window_slots));
  }
  if (!Aligned(pages)) {
    Wrong(kOp, "pages", "at a multiple of 16 bytes in memory", "a view that begins elsewhere");
  }
  std::optional<Tensor> window[2];  // a window is small, and may begin anywhere
  if (window_k.has_value()) {
    window[0] = Aligned(*window_k) ? *window_k : torch::stable::clone(*window_k);
    window[1] = Aligned(*window_v) ? *window_v : torch::stable::clone(*window_v);
    a.window_k = window[0]->const_data_ptr();
    a.window_v = window[1]->const_data_ptr();
  }
  const OnDevice device(kOp, pages);
  CheckCapability(kOp, device);
  const cuda::KvPlan plan =
      cuda::PlanKvAttention(cuda::KvPagesOf(p), a.heads, a.window_slots,
                            device.Attribute(kOp, cudaDevAttrMultiProcessorCount),
                            device.Attribute(kOp, cudaDevAttrMaxSharedMemoryPerBlockOptin));
  Tensor out = torch::stable::new_empty(q, {p.batch, a.heads, p.layout.head_dim});
  Tensor lse = torch::stable::new_empty(q, {p.batch, a.heads}, ScalarType::Float);
  Tensor partial =
      torch::stable::new_empty(q, {cuda::KvPartialFloats(p, a.heads, plan)}, ScalarType::Float);
  a.out = out.mutable_data_ptr();
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
  CheckLaunch(kOp,
              cuda::BitmapAttention(p, a, plan, static_cast<float*>(partial.mutable_data_ptr()),
                                    device.Stream(kOp)));
  return {out, lse};
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CUDA, m) {
  m.impl("bitmap_kv_append", TORCH_BOX(&sparsekern::bind::AppendCuda));
  m.impl("bitmap_kv_unpack", TORCH_BOX(&sparsekern::bind::UnpackCuda));
  m.impl("bitmap_attention", TORCH_BOX(&sparsekern::bind::AttentionCuda));
}
