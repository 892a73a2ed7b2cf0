// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.bitmap_kv_append, bitmap_kv_unpack and bitmap_attention on the CPU: checks
// and views are kv_args.h's, the work is the core's.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "bind/kv_args.h"
#include "bind/torch_parallel.h"

namespace sparsekern::bind {
namespace {

constexpr KvPlace kOnCpu = {[](const char* op, const char* argument, const Tensor& t,
                               const Tensor&) { CheckCpu(op, argument, t); },
                            true};

void AppendOp(const Tensor& k, const Tensor& v, Tensor pages, const Tensor& table,
              const Tensor& lengths, int64_t k_keep, int64_t v_keep) {
  const KvAppendCall call("bitmap_kv_append", kOnCpu, k, v, pages, table, lengths, k_keep, v_keep);
  ThrowIfError(BitmapKvAppend(call.view, call.args, TorchParallelFor()));
}

std::tuple<Tensor, Tensor> UnpackOp(const Tensor& pages, const Tensor& table, const Tensor& lengths,
                                    int64_t head_dim, int64_t k_keep, int64_t v_keep,
                                    int64_t tokens) {
  constexpr char kOp[] = "bitmap_kv_unpack";
  const KvCall call(kOp, kOnCpu, pages, table, lengths, head_dim, k_keep, v_keep);
  const BitmapKvPages& p = call.view;
  if (tokens < 0) Wrong(kOp, "tokens", "at least 0", std::to_string(tokens));
  Tensor k = Empty({p.batch, p.kv_heads, tokens, head_dim}, p.layout.dtype);
  Tensor v = Empty({p.batch, p.kv_heads, tokens, head_dim}, p.layout.dtype);
  ThrowIfError(BitmapKvUnpack(p, tokens, k.mutable_data_ptr(), v.mutable_data_ptr()));
  return {k, v};
}

std::tuple<Tensor, Tensor> AttentionOp(const Tensor& q, const Tensor& pages, const Tensor& table,
                                       const Tensor& lengths, int64_t k_keep, int64_t v_keep,
                                       const MaybeTensor& window_k, const MaybeTensor& window_v,
                                       const MaybeTensor& window_lengths, const MaybeTensor& starts,
                                       double scale, double softcap) {
  KvAttentionCall call("bitmap_attention", kOnCpu, q, pages, table, lengths, k_keep, v_keep,
                       window_k, window_v, window_lengths, starts, scale, softcap);
  const BitmapKvPages& p = call.view;
  Tensor out = Empty({p.batch, call.args.heads, p.layout.head_dim}, p.layout.dtype);
  Tensor lse = Empty({p.batch, call.args.heads}, DType::kF32);
  call.args.out = out.mutable_data_ptr();
  call.args.lse = static_cast<float*>(lse.mutable_data_ptr());
  ThrowIfError(BitmapAttention(p, call.args, TorchParallelFor()));
  return {out, lse};
}

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekern, m) {
  m.def(
      "bitmap_kv_append(Tensor k, Tensor v, Tensor(a!) pages, Tensor table, Tensor lengths, "
      "int k_keep, int v_keep) -> ()");
  m.def(
      "bitmap_kv_unpack(Tensor pages, Tensor table, Tensor lengths, int head_dim, int k_keep, "
      "int v_keep, int tokens) -> (Tensor, Tensor)");
  m.def(
      "bitmap_attention(Tensor q, Tensor pages, Tensor table, Tensor lengths, int k_keep, "
      "int v_keep, Tensor? window_k, Tensor? window_v, Tensor? window_lengths, Tensor? starts, "
      "float scale, float softcap=0.0) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("bitmap_kv_append", TORCH_BOX(&sparsekern::bind::AppendOp));
  m.impl("bitmap_kv_unpack", TORCH_BOX(&sparsekern::bind::UnpackOp));
  m.impl("bitmap_attention", TORCH_BOX(&sparsekern::bind::AttentionOp));
}
