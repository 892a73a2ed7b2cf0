// SPDX-License-Identifier: Apache-2.0
#include "ops/gqs_linear/decode_x.h"

#include <cstring>

namespace sparsekern {
namespace {

// The first width that holds all rows, else the widest there is.
template <typename Fn>
int Width(const int* widths, const Fn* dot, int count, int64_t x_rows) {
  int i = 0;
  while (widths[i] < x_rows && i + 1 < count && dot[i + 1] != nullptr) ++i;
  return i;
}

void Clear(const Scratch& scratch, int64_t bytes) {
  std::memset(scratch.data(), 0, static_cast<size_t>(bytes));
}

}  // namespace

DecodeXLayout::DecodeXLayout(const GqsKernels& kernels, const GqsInt8Kernels* int8_or_none,
                             const GqsMatrix& w, const LinearArgs& a)
    : int8(UsesGqsInt8(w.structure, a.x_rows, a.int8_x) ? int8_or_none : nullptr) {
  const GqsStructure& s = w.structure;
  const int bits = GqsBitsIndex(s.bits);
  if (int8 != nullptr) {
    // Twice four rows take less than sixteen.
    const int i = a.x_rows > 8 && int8->dot[bits][1] != nullptr ? 1 : 0;
    rows = kGqsInt8Rows[i];
    int8_dot = int8->dot[bits][i];
  } else if (a.x_rows == 1) {
    dot = kernels.one[bits][s.zeros][GqsShift(s)];
  } else {
    const int i = Width(kGqsRows, kernels.dot[bits][s.zeros], kGqsWidths, a.x_rows);
    rows = kGqsRows[i];
    dot = kernels.dot[bits][s.zeros][i];
  }
  chunks = static_cast<int>((a.x_rows + rows - 1) / rows);
  unit_bytes = static_cast<int64_t>(kGqsUnit) * rows * (int8 != nullptr ? 1 : 4);
  stride = PaddedCols(s) / kGqsUnit * unit_bytes;
  scale_stride = int8 != nullptr ? PaddedGroups(s) * rows : 0;
}

DecodeX::DecodeX(const GqsKernels& kernels, const GqsInt8Kernels* int8, const GqsMatrix& w,
                 const LinearArgs& a)
    : layout(kernels, int8, w, a),
      tiles_(kernels.tiles),
      s_(w.structure),
      a_(a),
      data_(layout.stride * layout.chunks / 4),
      scale_(layout.scale_stride * layout.chunks),
      row_(PaddedCols(s_)),
      codes_(layout.int8 != nullptr ? PaddedCols(s_) / 4 : 0),
      row_scale_(layout.int8 != nullptr ? PaddedGroups(s_) : 0) {}

bool DecodeX::ok() const {
  return data_.data() != nullptr && scale_.data() != nullptr && row_.data() != nullptr &&
         codes_.data() != nullptr && row_scale_.data() != nullptr;
}

// Row m, each `piece` bytes of it between those of the chunk's other rows.
void DecodeX::Put(int64_t m, const void* row, int piece) const {
  const auto* from = static_cast<const uint8_t*>(row);
  auto* to = reinterpret_cast<uint8_t*>(data_.data()) + m / layout.rows * layout.stride +
             m % layout.rows * piece;
  const int64_t bytes = layout.stride / layout.rows;
  if (layout.rows == 1) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  } else if (piece == 4) {
    for (int64_t at = 0; at < bytes; at += 4) std::memcpy(to + at * layout.rows, from + at, 4);
  } else {
    for (int64_t at = 0; at < bytes; at += 64) std::memcpy(to + at * layout.rows, from + at, 64);
  }
}

void DecodeX::Fill() const {
  Clear(data_, layout.stride * layout.chunks);
  Clear(scale_, 4 * layout.scale_stride * layout.chunks);
  float* row = row_.data();
  for (int64_t m = 0; m < a_.x_rows; ++m) {
    tiles_.expand[static_cast<int>(a_.dtype)](RowAt(a_, m), s_.cols, row);
    // Each time: a group that is not finite becomes NaN as far as it goes.
    std::memset(row + s_.cols, 0, sizeof(float) * static_cast<size_t>(PaddedCols(s_) - s_.cols));
    if (layout.int8 != nullptr) {
      layout.int8->quantize(row, s_.row_groups, s_.group, reinterpret_cast<uint8_t*>(codes_.data()),
                            row_scale_.data());
      Put(m, codes_.data(), 4);
      float* scale = scale_.data() + m / layout.rows * layout.scale_stride + m % layout.rows;
      for (int64_t g = 0; g < s_.row_groups; ++g) scale[g * layout.rows] = row_scale_.data()[g];
      continue;
    }
    if (a_.int8_x) {
      for (int64_t g = 0; g < s_.row_groups; ++g) {
        float* group = row + g * s_.group;
        const float scale = tiles_.quantize_row(group, s_.group);
        for (int i = 0; i < s_.group; ++i) group[i] *= scale;
      }
    }
    Put(m, row, kGqsUnit * 4);
  }
}

}  // namespace sparsekern
