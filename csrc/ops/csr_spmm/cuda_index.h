// SPDX-License-Identifier: Apache-2.0
// Index arithmetic of the CUDA csr kernel, as functions that the host compiles too: tests/cpp walks
// a packed matrix with them and compares with the dense one, so that only the launch needs a GPU to
// be tested.
#pragma once

#include <cstdint>

#include "base/cuda/host_device.h"

namespace sparsekern::cuda {

// The fields of a structure array (docs/formats.md), read where the array lies: on the device,
// without a copy to the host, so that a call needs no synchronization and can be captured in a
// graph.
struct CsrLayout {
  int64_t rows, cols, steps, panels, blocks;
  int block_rows, panel_groups;
  int64_t order_at, count_at, index_at;  // byte offsets
  bool consistent;                       // with the sizes of the arrays that were passed
};

SPARSEKERN_HOST_DEVICE uint64_t ReadU64(const uint8_t* p) {
  uint64_t v = 0;
  for (int i = 7; i >= 0; --i) v = (v << 8) | p[i];
  return v;
}
SPARSEKERN_HOST_DEVICE uint32_t ReadU32(const uint8_t* p) {
  return static_cast<uint32_t>(ReadU64(p) & 0xffffffffu);
}
SPARSEKERN_HOST_DEVICE int64_t Align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

SPARSEKERN_HOST_DEVICE CsrLayout ReadLayout(const uint8_t* structure, int64_t structure_bytes,
                                            int64_t value_count, int64_t rows, int64_t cols) {
  CsrLayout s;
  s.rows = static_cast<int64_t>(ReadU64(structure + 8));
  s.cols = static_cast<int64_t>(ReadU64(structure + 16));
  s.block_rows = static_cast<int>(ReadU32(structure + 24));
  s.panel_groups = static_cast<int>(ReadU32(structure + 28));
  s.steps = static_cast<int64_t>(ReadU64(structure + 32));
  s.panels = s.blocks = s.order_at = s.count_at = s.index_at = 0;
  s.consistent = false;
  if (s.rows != rows || s.cols != cols) return s;
  if (s.block_rows != 1 && s.block_rows != 2 && s.block_rows != 4) return s;
  if (s.panel_groups < 16 || s.panel_groups > 256 || s.panel_groups % 16 != 0) return s;
  if (s.steps < 0 || s.steps > structure_bytes / 16) return s;
  const int64_t groups = (rows + s.block_rows - 1) / s.block_rows;
  s.panels = (groups + s.panel_groups - 1) / s.panel_groups;
  s.blocks = (cols + 127) / 128;
  const int64_t tiles = s.panels * s.blocks;
  s.order_at = 64 + Align64(8 * (tiles + 1));
  s.count_at = s.order_at + Align64(tiles * s.panel_groups);
  s.index_at = s.count_at + Align64(tiles * s.panel_groups);
  s.consistent =
      s.index_at + s.steps * 16 == structure_bytes && s.steps * 16 * s.block_rows == value_count;
  return s;
}

SPARSEKERN_HOST_DEVICE int64_t TilePtr(const uint8_t* structure, int64_t t) {
  return static_cast<int64_t>(ReadU64(structure + 64 + 8 * t));
}

// Where slice `slice` of tile t begins, in steps, and where the tile ends; both clamped to the
// arrays.
struct SliceRange {
  int64_t begin, end;
};
SPARSEKERN_HOST_DEVICE SliceRange SliceSteps(const CsrLayout& s, const uint8_t* structure,
                                             int64_t t, int slice) {
  const uint8_t* count = structure + s.count_at + t * s.panel_groups;
  int64_t begin = TilePtr(structure, t);
  if (begin < 0 || begin > s.steps) begin = s.steps;
  for (int i = 0; i < slice; ++i) begin += count[i * 16];
  int64_t end = begin + count[slice * 16];
  if (begin > s.steps) begin = s.steps;
  if (end > s.steps) end = s.steps;
  return SliceRange{begin, end};
}

// The columns of x that a block of threads works on when the column blocks are split `parts` ways.
SPARSEKERN_HOST_DEVICE SliceRange PartOfBlocks(int64_t blocks, int part, int parts) {
  return SliceRange{blocks * part / parts, blocks * (part + 1) / parts};
}

}  // namespace sparsekern::cuda
