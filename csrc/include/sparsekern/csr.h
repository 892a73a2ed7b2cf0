// SPDX-License-Identifier: Apache-2.0
// The `csr` format: tiled compressed sparse rows, docs/formats.md. Pack, unpack, validate,
// transpose.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "sparsekern/dtype.h"
#include "sparsekern/status.h"

namespace sparsekern {

// Constants of the format, version 1.
enum : int { kCsrLanes = 16, kCsrBlockCols = 128, kCsrMaxPanelGroups = 256 };

// A parsed `structure` array: borrowed pointers and the numbers that follow from the header.
struct CsrStructure {
  int64_t rows = 0;
  int64_t cols = 0;
  int block_rows = 1;    // R: rows that share a column pattern
  int panel_groups = 0;  // H: groups of R rows in a panel
  int64_t steps = 0;     // of 16 lanes, over all tiles
  int64_t kept = 0;      // kept (group, column) pairs
  int64_t panels = 0;
  int64_t blocks = 0;  // of 128 columns

  const uint8_t* tile_ptr_bytes = nullptr;  // u64[panels * blocks + 1], perhaps unaligned
  const uint8_t* order = nullptr;           // [panels * blocks][panel_groups]
  const uint8_t* count = nullptr;           // [panels * blocks][panel_groups]
  const uint8_t* index = nullptr;           // [steps][16]

  // Steps before tile t (= panel * blocks + block).
  int64_t tile_ptr(int64_t t) const {
    int64_t steps_before;
    std::memcpy(&steps_before, tile_ptr_bytes + 8 * t, 8);
    return steps_before;
  }
  int64_t value_count() const { return steps * kCsrLanes * block_rows; }
  int64_t panel_rows() const { return static_cast<int64_t>(panel_groups) * block_rows; }
};

// Reads the header and checks what memory safety needs, in O(tiles): magic, version, ranges,
// section lengths against `bytes`, tile offsets monotone and in range. `name` begins the error's
// text.
Status ParseCsrStructure(const void* data, size_t bytes, const char* name, CsrStructure* out);

// Parses and then checks everything docs/formats.md demands, as of untrusted input. `values` are
// value_count elements of `dtype`.
Status ValidateCsr(const void* structure, size_t structure_bytes, const void* values,
                   int64_t value_count, DType dtype);

// Packs in two calls, because only counting tells how large the result is:
//   CsrPacker packer;
//   packer.Plan(...);  allocate value_count() and structure_bytes();  packer.Fill(values,
//   structure);
// The dense input must stay as it was between the two.
class CsrPacker {
 public:
  // dense: rows x cols, row-major, contiguous. mask: the same shape, nonzero = kept, or nullptr:
  // kept is what differs from zero (NaN does; -0 does not). block_rows: 1, 2 or 4.
  Status Plan(const void* dense, DType dtype, int64_t rows, int64_t cols, const uint8_t* mask,
              int block_rows);
  int64_t value_count() const;
  size_t structure_bytes() const;
  // values: value_count() elements of the dense dtype; structure: structure_bytes().
  void Fill(void* values, void* structure) const;

 private:
  const void* dense_ = nullptr;
  const uint8_t* mask_ = nullptr;
  DType dtype_ = DType::kF32;
  std::vector<uint8_t> prefix_;  // the structure up to the indices
  CsrStructure layout_;
};

// dense: rows x cols elements of `dtype`, written whole; what is not kept is 0.
void UnpackCsr(const CsrStructure& structure, const void* values, DType dtype, void* dense);
// mask: rows x cols bytes, 1 where kept.
void CsrMask(const CsrStructure& structure, uint8_t* mask);

// The pattern of the transposed matrix (block_rows 1) and where each of its values comes from:
// permutation[i] is a position in `values`, or -1 for padding.
Status TransposeCsr(const CsrStructure& structure, std::vector<uint8_t>* transposed,
                    std::vector<int64_t>* permutation);

}  // namespace sparsekern
