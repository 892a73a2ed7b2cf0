// SPDX-License-Identifier: Apache-2.0
#include "ops/gqs_linear/decode_x.h"

#include <atomic>
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

}  // namespace

DecodeXLayout::DecodeXLayout(const GqsKernels& kernels, const GqsInt8Kernels* int8_or_none,
                             const GqsMatrix& w, const LinearArgs& a)
    : int8(UsesGqsInt8(w.structure, a.x_rows, a.int8_x) ? int8_or_none : nullptr) {
  const GqsStructure& s = w.structure;
  const int bits = GqsBitsIndex(s.bits);
  if (int8 != nullptr && int8->panel != nullptr && a.x_rows > kGqsInt8Rows) {
    panel = int8->panel;
    rows = kGqsPanelRows;
  } else if (int8 != nullptr) {
    rows = kGqsInt8Rows;
    int8_dot = int8->dot[bits];
  } else if (a.x_rows == 1) {
    dot = kernels.one[bits][s.zeros][GqsShift(s)];
  } else {
    const int i = Width(kGqsRows, kernels.dot[bits][s.zeros], kGqsWidths, a.x_rows);
    rows = kGqsRows[i];
    dot = kernels.dot[bits][s.zeros][i];
  }
  chunks = static_cast<int>((a.x_rows + rows - 1) / rows);
  group_bytes = static_cast<int64_t>(s.group) * rows * (int8 != nullptr ? 1 : 4) +
                (panel != nullptr ? panel->head : 0);
  stride = PaddedGroups(s) * group_bytes;
  scale_stride = int8 != nullptr && panel == nullptr ? PaddedGroups(s) * rows : 0;
}

DecodeX::DecodeX(const GqsKernels& kernels, const GqsInt8Kernels* int8, const GqsMatrix& w,
                 const LinearArgs& a)
    : layout(kernels, int8, w, a),
      tiles_(kernels.tiles),
      s_(w.structure),
      a_(a),
      data_(layout.stride * layout.chunks / 4),
      scale_(layout.scale_stride * layout.chunks) {}

// What a thread needs for one row.
struct DecodeX::RowScratch {
  RowScratch(const GqsStructure& s, const DecodeXLayout& x)
      : row(PaddedCols(s)),
        codes(x.int8 != nullptr && x.panel == nullptr ? PaddedCols(s) / 4 : 0),
        scale(x.int8 != nullptr && x.panel == nullptr ? PaddedGroups(s) : 0) {}
  bool ok() const {
    return row.data() != nullptr && codes.data() != nullptr && scale.data() != nullptr;
  }

  Scratch row, codes, scale;
};

// Row m, each `piece` bytes of it between those of the chunk's other rows.
void DecodeX::Put(int64_t m, const void* row, int piece) const {
  const auto* from = static_cast<const uint8_t*>(row);
  auto* to = bytes() + m / layout.rows * layout.stride + m % layout.rows * piece;
  const int64_t count = layout.stride / layout.rows;
  if (layout.rows == 1) {
    std::memcpy(to, from, static_cast<size_t>(count));
  } else if (piece == 4) {
    for (int64_t at = 0; at < count; at += 4) std::memcpy(to + at * layout.rows, from + at, 4);
  } else {
    for (int64_t at = 0; at < count; at += 64) std::memcpy(to + at * layout.rows, from + at, 64);
  }
}

void DecodeX::FillRow(int64_t m, const RowScratch& scratch) const {
  float* row = scratch.row.data();
  tiles_.expand[static_cast<int>(a_.dtype)](RowAt(a_, m), s_.cols, row);
  // Each time: a group that is not finite becomes NaN as far as it goes.
  std::memset(row + s_.cols, 0, sizeof(float) * static_cast<size_t>(PaddedCols(s_) - s_.cols));
  if (layout.panel != nullptr) {
    layout.panel->pack(row, s_.row_groups, s_.group, s_.bits, static_cast<int>(m % layout.rows),
                       bytes() + m / layout.rows * layout.stride);
    return;
  }
  if (layout.int8 != nullptr) {
    auto* codes = reinterpret_cast<uint8_t*>(scratch.codes.data());
    layout.int8->quantize(row, s_.row_groups, s_.group, codes, scratch.scale.data());
    Put(m, codes, 4);
    float* scale = scale_.data() + m / layout.rows * layout.scale_stride + m % layout.rows;
    for (int64_t g = 0; g < s_.row_groups; ++g) scale[g * layout.rows] = scratch.scale.data()[g];
    return;
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

Status DecodeX::Fill(const ParallelFor& parallel_for) const {
  std::memset(data_.data(), 0, static_cast<size_t>(layout.stride * layout.chunks));
  std::memset(scale_.data(), 0, 4 * static_cast<size_t>(layout.scale_stride * layout.chunks));
  std::atomic<bool> failed{false};
  // Without rounding it is only copied.
  const ParallelFor few = a_.int8_x ? parallel_for : Serial();
  ForEachRange(few, a_.x_rows, [&](int64_t begin, int64_t end) {
    const RowScratch scratch(s_, layout);
    if (!scratch.ok()) {
      failed = true;
      return;
    }
    for (int64_t m = begin; m < end; ++m) FillRow(m, scratch);
  });
  return failed ? OutOfScratch(kGqsOp) : Status::Ok();
}

}  // namespace sparsekern
