// SPDX-License-Identifier: Apache-2.0
// The `gqs` format: groups of quantized weights, kept or pruned whole, docs/formats.md. Pack,
// unpack, validate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "sparsekern/dtype.h"
#include "sparsekern/status.h"

namespace sparsekern {

// Columns of a unit, the piece that kernels take at a time, and the most units of a task; constants
// of the format, version 1.
enum : int { kGqsUnit = 16, kGqsTaskUnits = 2048 };

// How the scale of a group is stored. The numbers are part of the format.
enum class GqsScale : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2, kU8 = 3 };
static constexpr size_t SizeOf(GqsScale scale) {
  return scale == GqsScale::kF32 ? 4 : scale == GqsScale::kU8 ? 1 : 2;
}
static constexpr bool IsValid(GqsScale scale) { return static_cast<uint8_t>(scale) <= 3; }
// Element i of a `scale` array, perhaps unaligned.
float GqsScaleAt(const void* scale, GqsScale kind, int64_t i);

// A parsed `structure` array: borrowed pointers and the numbers that follow from the header.
struct GqsStructure {
  int64_t rows = 0;
  int64_t cols = 0;
  int group = 0;           // columns: 16, 32, 64 or 128
  int bits = 0;            // of a value: 2, 4 or 8
  bool zeros = false;      // each group has a zero-point
  bool row_scale = false;  // scales are 8 bits, times a factor of the row
  int64_t groups = 0;      // kept
  int64_t task_groups = 0;
  int64_t tasks = 0;
  int64_t row_groups = 0;  // of a row, kept or not
  int64_t words = 0;       // of 16 bits in the mask of a row

  const uint8_t* row_ptr_bytes = nullptr;    // u32[rows + 1], perhaps unaligned, as the others
  const uint8_t* task_row_bytes = nullptr;   // u32[tasks]
  const uint8_t* mask = nullptr;             // u16[rows][words]
  const uint8_t* row_scale_bytes = nullptr;  // f32[rows], with row_scale

  // Kept groups before a row.
  int64_t row_ptr(int64_t row) const { return U32(row_ptr_bytes, row); }
  // The row that holds the first kept group of a task.
  int64_t task_row(int64_t task) const { return U32(task_row_bytes, task); }
  int units_per_group() const { return group / kGqsUnit; }
  int units_per_block() const { return 32 / bits; }
  int64_t value_bytes() const {
    const int64_t units = groups * units_per_group();
    return (units + units_per_block() - 1) / units_per_block() * 64;
  }
  int64_t scale_count() const { return zeros ? 2 * groups : groups; }

 private:
  static int64_t U32(const uint8_t* p, int64_t i) {
    uint32_t v;
    std::memcpy(&v, p + 4 * i, 4);
    return v;
  }
};

// Reads the header and checks what memory safety needs, in O(rows): magic, version, ranges, length
// against `bytes`, offsets and tasks in range. `name` begins the error's text.
Status ParseGqsStructure(const void* data, size_t bytes, const char* name, GqsStructure* out);

// Parses and then checks everything docs/formats.md demands, as of untrusted input.
Status ValidateGqs(const void* structure, size_t structure_bytes, const void* values,
                   int64_t value_bytes, const void* scale, int64_t scale_count, GqsScale kind);

// What is packed. codes: i8 [rows][cols], row-major, contiguous, in [-2^(bits-1), 2^(bits-1));
// those of pruned groups are not read. mask: [rows][ceil(cols / group)], nonzero = kept. row_scale:
// the factors of the rows for 8-bit scales, or nullptr.
struct GqsSource {
  const int8_t* codes = nullptr;
  const uint8_t* mask = nullptr;
  const float* row_scale = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int group = 16;
  int bits = 4;
  bool zeros = false;
};

// Packs in two calls, as CsrPacker does:
//   GqsPacker packer;
//   packer.Plan(source);  allocate value_bytes() and structure_bytes();  packer.Fill(values,
//   structure);
// The source must stay as it was between the two. Scales (and zero-points after them) are the
// caller's: one for each kept group, row by row.
class GqsPacker {
 public:
  Status Plan(const GqsSource& source);
  int64_t value_bytes() const { return layout_.value_bytes(); }
  size_t structure_bytes() const;
  int64_t groups() const { return layout_.groups; }
  void Fill(void* values, void* structure) const;

 private:
  GqsSource source_;
  GqsStructure layout_;
};

// codes: i8 [rows][cols], written whole; those of pruned groups are 0.
void UnpackGqs(const GqsStructure& structure, const void* values, int8_t* codes);
// mask: [rows][row_groups] bytes, written whole, 1 where kept.
void GqsMask(const GqsStructure& structure, uint8_t* mask);

}  // namespace sparsekern
