// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/bitmap_kv_append.h"

#include "ops/bitmap_kv_append/kernels.h"

namespace sparsekern {
namespace {

// Rows below which threads cost more than they bring (a row takes about 0.2 us).
constexpr int64_t kFewRows = 64;

const BitmapKvAppendKernels& SelectKernels(IsaMask mask) {
#define SPARSEKERN_BITMAP_KV_APPEND_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kBitmapKvAppendKernels_##isa_suffix;
#include "ops/bitmap_kv_append/kernels.inc"
#undef SPARSEKERN_BITMAP_KV_APPEND_KERNELS
  return kBitmapKvAppendKernels_scalar;
}

}  // namespace

Status BitmapKvAppend(const BitmapKvPages& p, const BitmapKvAppendArgs& a,
                      const ParallelFor& parallel_for) {
  if (a.tokens < 0) {
    return Status::InvalidValue("bitmap_kv_append: tokens must be at least 0, got " +
                                std::to_string(a.tokens));
  }
  SPARSEKERN_RETURN_IF_ERROR(CheckBitmapKv("bitmap_kv_append", p, a.tokens));
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const BitmapKvLayout& layout = p.layout;
  const PruneRowFn prune = SelectKernels(mask).prune[static_cast<int>(layout.dtype)];
  const int64_t element = layout.element();
  const int head_dim = static_cast<int>(layout.head_dim);
  const auto* k = static_cast<const uint8_t*>(a.k);
  const auto* v = static_cast<const uint8_t*>(a.v);
  const int64_t rows = p.batch * p.kv_heads * a.tokens;
  ForEachRange(rows <= kFewRows ? Serial() : parallel_for, rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = row % a.tokens;
      const int64_t h = row / a.tokens % p.kv_heads;
      const int64_t b = row / a.tokens / p.kv_heads;
      const int64_t token = p.lengths[b] + t;
      const int64_t at = token % kBitmapKvTokens;
      uint8_t* page = p.Page(b, token / kBitmapKvTokens, h);
      const int64_t* ks = a.k_strides;
      const int64_t* vs = a.v_strides;
      prune(k + (b * ks[0] + h * ks[1] + t * ks[2]) * element, head_dim,
            static_cast<int>(layout.k_keep),
            page + layout.k_values() + at * layout.k_keep * element,
            page + layout.k_masks() + at * layout.row_mask());
      prune(v + (b * vs[0] + h * vs[1] + t * vs[2]) * element, head_dim,
            static_cast<int>(layout.v_keep),
            page + layout.v_values() + at * layout.v_keep * element,
            page + layout.v_masks() + at * layout.row_mask());
    }
  });
  return Status::Ok();
}

std::string BitmapKvAppendKernelName(DType dtype, IsaMask mask) {
  return std::string("bitmap_kv_append_") + ShortName(dtype) + "__" + SelectKernels(mask).isa_name;
}

}  // namespace sparsekern
