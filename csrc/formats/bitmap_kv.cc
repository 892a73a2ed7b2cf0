// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/bitmap_kv.h"

#include <bit>
#include <cstring>
#include <string>

namespace sparsekern {
namespace {

std::string Wrong(const char* op, const std::string& what, int64_t got) {
  return std::string(op) + ": " + what + ", got " + std::to_string(got);
}

// One token's row; false when the mask does not keep `keep` channels (nothing is written then).
bool UnpackRow(const uint8_t* values, const uint8_t* mask, int64_t head_dim, int64_t keep,
               int64_t element, uint8_t* out, int64_t* kept) {
  *kept = 0;
  for (int64_t i = 0; i < head_dim / 8; ++i) *kept += std::popcount(mask[i]);
  if (*kept != keep) return false;
  if (out == nullptr) return true;
  for (int64_t i = 0; i < head_dim; ++i) {
    if ((mask[i / 8] >> (i % 8) & 1) == 0) continue;
    std::memcpy(out + i * element, values, static_cast<size_t>(element));
    values += element;
  }
  return true;
}

}  // namespace

Status CheckBitmapKv(const char* op, const BitmapKvPages& p, int64_t more) {
  const BitmapKvLayout& layout = p.layout;
  if (layout.dtype != DType::kF32 && layout.dtype != DType::kBF16 && layout.dtype != DType::kF16) {
    return Status::InvalidType(std::string(op) +
                               ": pages must be float32, bfloat16 or float16, got " +
                               Name(layout.dtype));
  }
  if (layout.head_dim < 8 || layout.head_dim > kBitmapKvMaxHeadDim || layout.head_dim % 8 != 0) {
    return Status::InvalidValue(
        Wrong(op, "head_dim must be a multiple of 8 from 8 to 256", layout.head_dim));
  }
  const std::string bound =
      " must be in [1, head_dim] = [1, " + std::to_string(layout.head_dim) + "]";
  if (layout.k_keep < 1 || layout.k_keep > layout.head_dim) {
    return Status::InvalidValue(Wrong(op, "k_keep" + bound, layout.k_keep));
  }
  if (layout.v_keep < 1 || layout.v_keep > layout.head_dim) {
    return Status::InvalidValue(Wrong(op, "v_keep" + bound, layout.v_keep));
  }
  const int64_t room = p.table_pages * kBitmapKvTokens;
  if (more > room && p.batch > 0) {
    return Status::InvalidValue(Wrong(op,
                                      "tokens must be at most " + std::to_string(room) +
                                          " (the table has " + std::to_string(p.table_pages) +
                                          " pages of 64 tokens)",
                                      more));
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.lengths[b] < 0 || p.lengths[b] > room || more > room - p.lengths[b]) {
      return Status::InvalidValue(
          Wrong(op,
                "lengths[" + std::to_string(b) + "] must be in [0, " + std::to_string(room - more) +
                    "] (the table has " + std::to_string(p.table_pages) + " pages of 64 tokens" +
                    (more > 0 ? ", and " + std::to_string(more) + " are to be appended)" : ")"),
                p.lengths[b]));
    }
    const int64_t used = (p.lengths[b] + more + kBitmapKvTokens - 1) / kBitmapKvTokens;
    for (int64_t i = 0; i < used; ++i) {
      const int64_t page = p.table[b * p.table_pages + i];
      if (page < 0 || page >= p.page_count) {
        return Status::InvalidValue(Wrong(op,
                                          "table[" + std::to_string(b) + ", " + std::to_string(i) +
                                              "] must be in [0, " + std::to_string(p.page_count) +
                                              ")",
                                          page));
      }
    }
  }
  return Status::Ok();
}

Status BitmapKvUnpack(const BitmapKvPages& p, int64_t tokens, void* k, void* v) {
  constexpr char kOp[] = "bitmap_kv_unpack";
  SPARSEKERN_RETURN_IF_ERROR(CheckBitmapKv(kOp, p, 0));
  if (tokens < 0) return Status::InvalidValue(Wrong(kOp, "tokens must be at least 0", tokens));
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.lengths[b] > tokens) {
      return Status::InvalidValue(Wrong(kOp,
                                        "tokens must be at least lengths[" + std::to_string(b) +
                                            "] = " + std::to_string(p.lengths[b]),
                                        tokens));
    }
  }
  const BitmapKvLayout& layout = p.layout;
  const int64_t row = layout.head_dim * layout.element();
  void* const outs[] = {k, v};
  for (void* out : outs) {
    if (out != nullptr) {
      std::memset(out, 0, static_cast<size_t>(p.batch * p.kv_heads * tokens * row));
    }
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      for (int64_t t = 0; t < p.lengths[b]; ++t) {
        const uint8_t* page = p.Page(b, t / kBitmapKvTokens, h);
        const int64_t at = t % kBitmapKvTokens;
        for (int which = 0; which < 2; ++which) {
          const int64_t keep = which == 0 ? layout.k_keep : layout.v_keep;
          const uint8_t* values = page + (which == 0 ? layout.k_values() : layout.v_values());
          const uint8_t* masks = page + (which == 0 ? layout.k_masks() : layout.v_masks());
          auto* out = static_cast<uint8_t*>(outs[which]);
          if (out != nullptr) out += ((b * p.kv_heads + h) * tokens + t) * row;
          int64_t kept = 0;
          if (!UnpackRow(values + at * keep * layout.element(), masks + at * layout.row_mask(),
                         layout.head_dim, keep, layout.element(), out, &kept)) {
            return Status::InvalidValue(
                Wrong(kOp,
                      std::string("the ") + (which == 0 ? "K" : "V") + " mask of sequence " +
                          std::to_string(b) + ", head " + std::to_string(h) + ", token " +
                          std::to_string(t) + " must keep " + std::to_string(keep) + " channels",
                      kept));
          }
        }
      }
    }
  }
  return Status::Ok();
}

}  // namespace sparsekern
