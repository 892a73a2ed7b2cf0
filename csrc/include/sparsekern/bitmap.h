// SPDX-License-Identifier: Apache-2.0
// The `bitmap` format: a bit for every weight and the kept ones behind each other,
// docs/formats.md. Pack, unpack, validate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "sparsekern/dtype.h"
#include "sparsekern/parallel.h"
#include "sparsekern/status.h"

namespace sparsekern {

// Rows of a panel and columns of a word; constants of the format, version 1.
enum : int { kBitmapLanes = 16, kBitmapWord = 64 };

// A parsed `structure` array: borrowed pointers and the numbers that follow from the header.
struct BitmapStructure {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t kept = 0;
  int64_t panels = 0;  // of 16 rows
  int64_t words = 0;   // of 64 columns, in a row

  const uint8_t* panel_ptr_bytes = nullptr;  // u64[panels + 1], perhaps unaligned
  const uint8_t* bitmap = nullptr;           // u64[panels][words][16], perhaps unaligned

  // Values before panel p.
  int64_t panel_ptr(int64_t p) const {
    int64_t before;
    std::memcpy(&before, panel_ptr_bytes + 8 * p, 8);
    return before;
  }
  // The sixteen words of a panel in one column of words.
  const uint8_t* slice(int64_t panel, int64_t word) const {
    return bitmap + static_cast<size_t>(panel * words + word) * kBitmapLanes * 8;
  }
  int64_t value_count() const { return kept; }
};

// Reads the header and checks what memory safety needs, in O(panels): magic, version, ranges,
// length against `bytes`, panel offsets monotone and in range. `name` begins the error's text. The
// bits are not counted: what walks them must not trust them beyond a panel's values.
Status ParseBitmapStructure(const void* data, size_t bytes, const char* name, BitmapStructure* out);

// Parses and then checks everything docs/formats.md demands, as of untrusted input. `values` are
// value_count elements of `dtype`; any bit pattern of them is valid.
Status ValidateBitmap(const void* structure, size_t structure_bytes, const void* values,
                      int64_t value_count, DType dtype);

// Packs in two calls, because only counting tells how large the result is:
//   BitmapPacker packer;
//   packer.Plan(...);  allocate value_count() and structure_bytes();  packer.Fill(values,
//   structure);
// The dense input must stay as it was between the two.
class BitmapPacker {
 public:
  // dense: rows x cols, row-major, contiguous. mask: the same shape, nonzero = kept, or nullptr:
  // kept is what differs from zero (NaN does; -0 does not).
  Status Plan(const void* dense, DType dtype, int64_t rows, int64_t cols, const uint8_t* mask,
              const ParallelFor& parallel_for = Serial());
  int64_t value_count() const { return layout_.kept; }
  size_t structure_bytes() const;
  // values: value_count() elements of the dense dtype; structure: structure_bytes().
  void Fill(void* values, void* structure, const ParallelFor& parallel_for = Serial()) const;

 private:
  const void* dense_ = nullptr;
  const uint8_t* mask_ = nullptr;
  DType dtype_ = DType::kF32;
  BitmapStructure layout_;
  std::vector<int64_t> panel_ptr_;
};

// Of a structure that was validated. dense: rows x cols elements of `dtype`, written whole; what is
// not kept is 0.
void UnpackBitmap(const BitmapStructure& structure, const void* values, DType dtype, void* dense);
// mask: rows x cols bytes, written whole, 1 where kept.
void BitmapMask(const BitmapStructure& structure, uint8_t* mask);

}  // namespace sparsekern
