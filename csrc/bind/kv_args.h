// SPDX-License-Identifier: Apache-2.0
// Checks and views of the arguments of pruned KV caches' operators, on the CPU and on CUDA.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>

#include "bind/torch_args.h"
#include "bind/torch_errors.h"
#include "bind/torch_tensor.h"
#include "sparsekern/bitmap_attention.h"
#include "sparsekern/bitmap_kv_append.h"

namespace sparsekern::bind {

[[noreturn]] inline void Wrong(const char* op, const char* argument, const std::string& expected,
                               const std::string& got) {
  Fail(Status::InvalidValue(std::string(op) + ": " + argument + " must be " + expected + ", got " +
                            got));
}

inline std::string ShapeOf(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(t.size(d));
  }
  return text + "]";
}

inline void CheckDType(const char* op, const char* argument, const Tensor& t, DType dtype) {
  if (FloatType(op, argument, t) != dtype) {
    Fail(Status::InvalidType(std::string(op) + ": " + argument +
                             " must have the dtype of the pages (" + Name(dtype) + "), got " +
                             Name(FloatType(op, argument, t))));
  }
}

inline std::string TypeName(ScalarType type) {
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

inline void CheckInteger(const char* op, const char* argument, const Tensor& t, ScalarType want) {
  if (t.scalar_type() == want) return;
  Fail(Status::InvalidType(std::string(op) + ": " + argument + " must be " + TypeName(want) +
                           ", got " + TypeName(t.scalar_type())));
}

inline void CheckContiguous(const char* op, const char* argument, const Tensor& t) {
  if (t.is_contiguous()) return;
  std::string strides;
  for (int64_t d = 0; d < t.dim(); ++d) {
    strides += (d == 0 ? "" : ", ") + std::to_string(t.stride(d));
  }
  Wrong(op, argument, "contiguous", "shape " + ShapeOf(t) + " with strides [" + strides + "]");
}

// Where an operator's tensors must be, as a check of each beside the pages, and whether the host
// may look at what they hold.
struct KvPlace {
  void (*check)(const char* op, const char* argument, const Tensor& t, const Tensor& pages);
  bool readable;
};

// The arguments that all of these operators have.
class KvCall {
 public:
  // pages [pages, kv_heads, elements], table [batch, pages of a sequence] int32, lengths [batch].
  KvCall(const char* op, const KvPlace& place, const Tensor& pages, const Tensor& table,
         const Tensor& lengths, int64_t head_dim, int64_t k_keep, int64_t v_keep)
      : op_(op), place_(place), pages_(pages) {
    BitmapKvPages& p = view;
    place.check(op, "pages", pages, pages);
    place.check(op, "table", table, pages);
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
    p.lengths = Counts("lengths", lengths);
    p.pages = static_cast<uint8_t*>(const_cast<void*>(pages.const_data_ptr()));
    ThrowIfError(CheckBitmapKv(op, place.readable ? p : WithoutSequences(), 0));
    if (pages.size(2) != BitmapKvPageElements(p.layout)) {
      Wrong(op, "pages",
            "[pages, kv_heads, " + std::to_string(BitmapKvPageElements(p.layout)) +
                "] for head_dim " + std::to_string(head_dim) + ", k_keep " +
                std::to_string(k_keep) + " and v_keep " + std::to_string(v_keep),
            ShapeOf(pages));
    }
  }

  // The view of an empty batch: the core's checks of it look at sizes alone.
  BitmapKvPages WithoutSequences() const {
    BitmapKvPages none = view;
    none.batch = 0;
    return none;
  }

  BitmapKvPages view;

 protected:
  const int64_t* Counts(const char* argument, const Tensor& t) const {
    place_.check(op_, argument, t, pages_);
    if (t.dim() != 1 || t.size(0) != view.batch || !t.is_contiguous()) {
      Fail(Status::InvalidValue(std::string(op_) + ": " + argument + " must be contiguous with " +
                                std::to_string(view.batch) + " elements, got " +
                                std::to_string(t.numel())));
    }
    CheckInteger(op_, argument, t, ScalarType::Long);
    return static_cast<const int64_t*>(t.const_data_ptr());
  }

  // k and v: [batch, kv_heads, tokens, head_dim]; channels become contiguous.
  Tensor Rows(const char* argument, const Tensor& t, int64_t tokens, int64_t* strides) const {
    place_.check(op_, argument, t, pages_);
    CheckDType(op_, argument, t, view.layout.dtype);
    if (t.dim() != 4 || t.size(0) != view.batch || t.size(1) != view.kv_heads ||
        t.size(2) != tokens || t.size(3) != view.layout.head_dim) {
      Wrong(op_, argument,
            "[" + std::to_string(view.batch) + ", " + std::to_string(view.kv_heads) + ", " +
                std::to_string(tokens) + ", " + std::to_string(view.layout.head_dim) + "]",
            ShapeOf(t));
    }
    const Tensor rows = t.stride(3) == 1 ? t : torch::stable::contiguous(t);
    for (int d = 0; d < 3; ++d) strides[d] = rows.stride(d);
    return rows;
  }

  const char* op_;
  const KvPlace& place_;
  const Tensor& pages_;
};

class KvAppendCall : public KvCall {
 public:
  KvAppendCall(const char* op, const KvPlace& place, const Tensor& k, const Tensor& v,
               const Tensor& pages, const Tensor& table, const Tensor& lengths, int64_t k_keep,
               int64_t v_keep)
      : KvCall(op, place, pages, table, lengths, HeadDim(op, k), k_keep, v_keep) {
    args.tokens = k.size(2);
    k_ = Rows("k", k, args.tokens, args.k_strides);
    v_ = Rows("v", v, args.tokens, args.v_strides);
    args.k = k_->const_data_ptr();
    args.v = v_->const_data_ptr();
  }

  BitmapKvAppendArgs args;

 private:
  static int64_t HeadDim(const char* op, const Tensor& k) {
    if (k.dim() != 4) Wrong(op, "k", "[batch, kv_heads, tokens, head_dim]", ShapeOf(k));
    return k.size(3);
  }

  std::optional<Tensor> k_, v_;
};

// All but the results.
class KvAttentionCall : public KvCall {
 public:
  KvAttentionCall(const char* op, const KvPlace& place, const Tensor& q, const Tensor& pages,
                  const Tensor& table, const Tensor& lengths, int64_t k_keep, int64_t v_keep,
                  const MaybeTensor& window_k, const MaybeTensor& window_v,
                  const MaybeTensor& window_lengths, const MaybeTensor& starts, double scale,
                  double softcap)
      : KvCall(op, place, pages, table, lengths, HeadDim(op, place, q, pages), k_keep, v_keep),
        q_(q.is_contiguous() ? q : torch::stable::contiguous(q)) {
    CheckDType(op, "q", q, view.layout.dtype);
    if (q.size(0) != view.batch) {
      Wrong(op, "q", "[" + std::to_string(view.batch) + ", heads, head_dim]", ShapeOf(q));
    }
    args.dtype = view.layout.dtype;
    args.heads = q.size(1);
    args.scale = static_cast<float>(scale);
    args.softcap = static_cast<float>(softcap);
    args.q = q_.const_data_ptr();
    if (window_k.has_value() != window_v.has_value() ||
        window_k.has_value() != window_lengths.has_value()) {
      Wrong(op, "window_k, window_v and window_lengths", "given together", "some of them");
    }
    if (window_k.has_value()) {
      if (window_k->dim() != 4) {
        Wrong(op, "window_k", "[batch, kv_heads, slots, head_dim]", ShapeOf(*window_k));
      }
      args.window_slots = window_k->size(2);
      int64_t strides[3];
      Rows("window_k", *window_k, args.window_slots, strides);
      Rows("window_v", *window_v, args.window_slots, strides);
      CheckContiguous(op, "window_k", *window_k);
      CheckContiguous(op, "window_v", *window_v);
      args.window_k = window_k->const_data_ptr();
      args.window_v = window_v->const_data_ptr();
      args.window_lengths = Counts("window_lengths", *window_lengths);
    }
    if (starts.has_value()) args.starts = Counts("starts", *starts);
  }

  BitmapAttentionArgs args;

 private:
  static int64_t HeadDim(const char* op, const KvPlace& place, const Tensor& q,
                         const Tensor& pages) {
    if (q.dim() != 3) Wrong(op, "q", "[batch, heads, head_dim]", ShapeOf(q));
    place.check(op, "q", q, pages);
    return q.size(2);
  }

  const Tensor q_;
};

}  // namespace sparsekern::bind
