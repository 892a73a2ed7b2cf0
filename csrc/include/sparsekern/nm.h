// SPDX-License-Identifier: Apache-2.0
// The `nm` format: N kept weights in every M consecutive columns, docs/formats.md. Pack, unpack,
// validate.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sparsekern/dtype.h"
#include "sparsekern/status.h"

namespace sparsekern {

// Rows that are side by side in a panel; a constant of the format, version 1.
enum : int { kNmLanes = 16 };

// A parsed `structure` array: a borrowed pointer and the numbers that follow from the header.
struct NmStructure {
  int64_t rows = 0;
  int64_t cols = 0;
  int n = 0;           // kept columns ...
  int m = 0;           // ... of this many: 2, 4, 8, 16 or 32
  int window = 0;      // columns that a field can name: 4, 16 or 32
  int field_bits = 0;  // 2, 4 or 8
  int64_t steps = 0;   // kept weights of a row, those of the last window's groups included
  int64_t words = 0;   // of 32 bits that hold the fields of a row
  int64_t panels = 0;  // of 16 rows

  const uint8_t* index = nullptr;  // u32[panels][words][16], perhaps unaligned

  int64_t value_count() const { return panels * steps * kNmLanes; }
  int steps_per_window() const { return window / m * n; }
};

// Reads the header and checks what memory safety needs, in O(1): magic, version, ranges, length
// against `bytes`. `name` begins the error's text. Every bit pattern of `index` is then safe to
// read: a field may name a wrong column or one beyond `cols`, never more than field_bits hold.
Status ParseNmStructure(const void* data, size_t bytes, const char* name, NmStructure* out);

// Parses and then checks everything docs/formats.md demands, as of untrusted input. `values` are
// value_count elements of `dtype`.
Status ValidateNm(const void* structure, size_t structure_bytes, const void* values,
                  int64_t value_count, DType dtype);

// What a packed matrix of values of `dtype` will be, all but `index`. Refuses extents, n and m that
// the format does not have and what no address space holds.
Status PlanNm(int64_t rows, int64_t cols, int n, int m, DType dtype, NmStructure* out);
// Of the header, and of a whole structure array.
constexpr size_t kNmHeaderBytes = 64;
size_t NmStructureBytes(const NmStructure& structure);
void WriteNmHeader(const NmStructure& structure, void* out);

// Packs in two calls, as CsrPacker does:
//   NmPacker packer;
//   packer.Plan(...);  allocate value_count() and structure_bytes();  packer.Fill(values,
//   structure);
// The dense input must stay as it was between the two.
class NmPacker {
 public:
  // dense: rows x cols, row-major, contiguous. mask: the same shape, nonzero = kept, or nullptr:
  // kept is what differs from zero (NaN does; -0 does not). A group that keeps fewer than n gets
  // its lowest other columns: as dense holds them, or with a mask as zero. One that keeps more is
  // refused with kInvalidValue.
  Status Plan(const void* dense, DType dtype, int64_t rows, int64_t cols, int n, int m,
              const uint8_t* mask);
  int64_t value_count() const { return layout_.value_count(); }
  size_t structure_bytes() const;
  // values: value_count() elements of the dense dtype; structure: structure_bytes().
  void Fill(void* values, void* structure) const;

 private:
  const void* dense_ = nullptr;
  const uint8_t* mask_ = nullptr;
  DType dtype_ = DType::kF32;
  NmStructure layout_;
};

// dense: rows x cols elements of `dtype`, written whole; what is not kept is 0.
void UnpackNm(const NmStructure& structure, const void* values, DType dtype, void* dense);
// mask: rows x cols bytes, written whole, 1 where kept.
void NmMask(const NmStructure& structure, uint8_t* mask);

}  // namespace sparsekern
