// SPDX-License-Identifier: Apache-2.0
// torch.ops.sparsekern.bitmap_kv_append, bitmap_kv_unpack and bitmap_attention on the CPU: checks,
// views, allocation; the work is the core's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "bind/torch_args.h"
#include "bind/torch_errors.h"
#include "bind/torch_parallel.h"
#include "bind/torch_tensor.h"
#include "sparsekern/bitmap_attention.h"
#include "sparsekern/bitmap_kv_append.h"

namespace sparsekern::bind {
namespace {

[[noreturn]] void Wrong(const char* op, const char* argument, const std::string& expected,
                        const std::string& got) {
  Fail(Status::InvalidValue(std::string(op) + ": " + argument + " must be " + expected + ", got " +
                            got));
}

std::string ShapeOf(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(t.size(d));
  }
  return text + "]";
}

void CheckDType(const char* op, const char* argument, const Tensor& t, DType dtype) {
  if (FloatType(op, argument, t) != dtype) {
    Fail(Status::InvalidType(std::string(op) + ": " + argument +
                             " must have the dtype of the pages (" + Name(dtype) + "), got " +
                             Name(FloatType(op, argument, t))));
  }
}

std::string TypeName(ScalarType type) {
  switch (type) {
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    default: return "another dtype";
  }
}

void CheckInteger(const char* op, const char* argument, const Tensor& t, ScalarType want) {
  if (t.scalar_type() == want) return;
  Fail(Status::InvalidType(std::string(op) + ": " + argument + " must be " + TypeName(want) +
                           ", got " + TypeName(t.scalar_type())));
}

void CheckContiguous(const char* op, const char* argument, const Tensor& t) {
  if (t.is_contiguous()) return;
  std::string strides;
  for (int64_t d = 0; d < t.dim(); ++d) {
    strides += (d == 0 ? "" : ", ") + std::to_string(t.stride(d));
  }
  Wrong(op, argument, "contiguous", "shape " + ShapeOf(t) + " with strides [" + strides + "]");
}

const int64_t* Counts(const char* op, const char* argument, const Tensor& t, int64_t batch) {
  CheckVector(op, argument, t, batch);
  CheckInteger(op, argument, t, ScalarType::Long);
  return static_cast<const int64_t*>(t.const_data_ptr());
}

// pages [pages, kv_heads, elements], table [batch, pages of a sequence] int32, lengths [batch].
BitmapKvPages View(const char* op, const Tensor& pages, const Tensor& table, const Tensor& lengths,
                   int64_t head_dim, int64_t k_keep, int64_t v_keep) {
  BitmapKvPages p;
  CheckCpu(op, "pages", pages);
  CheckCpu(op, "table", table);
  p.layout = BitmapKvLayout{FloatType(op, "pages", pages), head_dim, k_keep, v_keep};
  if (pages.dim() != 3) Wrong(op, "pages", "[pages, kv_heads, elements]", ShapeOf(pages));
  CheckContiguous(op, "pages", pages);
  CheckInteger(op, "table", table, ScalarType::Int);
  if (table.dim() != 2) Wrong(op, "table", "[batch, pages of a sequence]", ShapeOf(table));
  CheckContiguous(op, "table", table);
  p.page_count = pages.size(0);
  p.kv_heads = pages.size(1);
  p.batch = table.size(0);
  p.table_pages = table.size(1);
  p.table = static_cast<const int32_t*>(table.const_data_ptr());
  p.lengths = Counts(op, "lengths", lengths, p.batch);
  p.pages = static_cast<uint8_t*>(const_cast<void*>(pages.const_data_ptr()));
  ThrowIfError(CheckBitmapKv(op, p, 0));
  if (pages.size(2) != BitmapKvPageElements(p.layout)) {
    Wrong(op, "pages",
          "[pages, kv_heads, " + std::to_string(BitmapKvPageElements(p.layout)) +
              "] for head_dim " + std::to_string(head_dim) + ", k_keep " + std::to_string(k_keep) +
              " and v_keep " + std::to_string(v_keep),
          ShapeOf(pages));
  }
  return p;
}

// k and v: [batch, kv_heads, tokens, head_dim], channels contiguous.
Tensor Rows(const char* op, const char* argument, const Tensor& t, const BitmapKvPages& p,
            int64_t tokens, int64_t* strides) {
  CheckCpu(op, argument, t);
  CheckDType(op, argument, t, p.layout.dtype);
  if (t.dim() != 4 || t.size(0) != p.batch || t.size(1) != p.kv_heads || t.size(2) != tokens ||
      t.size(3) != p.layout.head_dim) {
    Wrong(op, argument,
          "[" + std::to_string(p.batch) + ", " + std::to_string(p.kv_heads) + ", " +
              std::to_string(tokens) + ", " + std::to_string(p.layout.head_dim) + "]",
          ShapeOf(t));
  }
  const Tensor rows = t.stride(3) == 1 ? t : torch::stable::contiguous(t);
  for (int d = 0; d < 3; ++d) strides[d] = rows.stride(d);
  return rows;
}

void AppendOp(const Tensor& k, const Tensor& v, Tensor pages, const Tensor& table,
              const Tensor& lengths, int64_t k_keep, int64_t v_keep) {
  constexpr char kOp[] = "bitmap_kv_append";
  if (k.dim() != 4) Wrong(kOp, "k", "[batch, kv_heads, tokens, head_dim]", ShapeOf(k));
  const BitmapKvPages p = View(kOp, pages, table, lengths, k.size(3), k_keep, v_keep);
  BitmapKvAppendArgs args;
  args.tokens = k.size(2);
  const Tensor k_rows = Rows(kOp, "k", k, p, args.tokens, args.k_strides);
  const Tensor v_rows = Rows(kOp, "v", v, p, args.tokens, args.v_strides);
  args.k = k_rows.const_data_ptr();
  args.v = v_rows.const_data_ptr();
  ThrowIfError(BitmapKvAppend(p, args, TorchParallelFor()));
}

std::tuple<Tensor, Tensor> UnpackOp(const Tensor& pages, const Tensor& table, const Tensor& lengths,
                                    int64_t head_dim, int64_t k_keep, int64_t v_keep,
                                    int64_t tokens) {
  constexpr char kOp[] = "bitmap_kv_unpack";
  const BitmapKvPages p = View(kOp, pages, table, lengths, head_dim, k_keep, v_keep);
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
  constexpr char kOp[] = "bitmap_attention";
  if (q.dim() != 3) Wrong(kOp, "q", "[batch, heads, head_dim]", ShapeOf(q));
  CheckCpu(kOp, "q", q);
  const int64_t head_dim = q.size(2);
  const BitmapKvPages p = View(kOp, pages, table, lengths, head_dim, k_keep, v_keep);
  CheckDType(kOp, "q", q, p.layout.dtype);
  if (q.size(0) != p.batch) {
    Wrong(kOp, "q", "[" + std::to_string(p.batch) + ", heads, head_dim]", ShapeOf(q));
  }
  BitmapAttentionArgs args;
  args.dtype = p.layout.dtype;
  args.heads = q.size(1);
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap);
  const Tensor q_rows = q.is_contiguous() ? q : torch::stable::contiguous(q);
  args.q = q_rows.const_data_ptr();
  if (window_k.has_value() != window_v.has_value() ||
      window_k.has_value() != window_lengths.has_value()) {
    Wrong(kOp, "window_k, window_v and window_lengths", "given together", "some of them");
  }
  if (window_k.has_value()) {
    if (window_k->dim() != 4) {
      Wrong(kOp, "window_k", "[batch, kv_heads, slots, head_dim]", ShapeOf(*window_k));
    }
    args.window_slots = window_k->size(2);
    int64_t strides[3];
    Rows(kOp, "window_k", *window_k, p, args.window_slots, strides);
    Rows(kOp, "window_v", *window_v, p, args.window_slots, strides);
    CheckContiguous(kOp, "window_k", *window_k);
    CheckContiguous(kOp, "window_v", *window_v);
    args.window_k = window_k->const_data_ptr();
    args.window_v = window_v->const_data_ptr();
    args.window_lengths = Counts(kOp, "window_lengths", *window_lengths, p.batch);
  }
  if (starts.has_value()) args.starts = Counts(kOp, "starts", *starts, p.batch);
  Tensor out = Empty({p.batch, args.heads, head_dim}, p.layout.dtype);
  Tensor lse = Empty({p.batch, args.heads}, DType::kF32);
  args.out = out.mutable_data_ptr();
  args.lse = static_cast<float*>(lse.mutable_data_ptr());
  ThrowIfError(BitmapAttention(p, args, TorchParallelFor()));
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
