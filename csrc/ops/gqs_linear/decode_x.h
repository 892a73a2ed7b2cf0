// SPDX-License-Identifier: Apache-2.0
// x as the decode kernels of gqs_linear take it.
#pragma once

#include "ops/gqs_linear/drivers.h"

namespace sparsekern {

// Chunks of `rows` rows: fp32 as [units][rows][16], int8 as kernels.h says.
struct DecodeXLayout {
  DecodeXLayout(const GqsKernels& kernels, const GqsInt8Kernels* int8_or_none, const GqsMatrix& w,
                const LinearArgs& a);

  const GqsInt8Kernels* int8;              // or nullptr
  const GqsPanelKernels* panel = nullptr;  // then none of the two:
  GqsDotFn dot = nullptr;
  GqsInt8DotFn int8_dot = nullptr;
  int rows = 1, chunks = 1;
  int64_t group_bytes = 0;
  int64_t stride = 0, scale_stride = 0;  // of a chunk: bytes, floats
};

class DecodeX {
 public:
  DecodeX(const GqsKernels& kernels, const GqsInt8Kernels* int8, const GqsMatrix& w,
          const LinearArgs& a);
  bool ok() const { return data_.data() != nullptr && scale_.data() != nullptr; }
  Status Fill(const ParallelFor& parallel_for) const;

  const uint8_t* Chunk(int chunk) const { return bytes() + chunk * layout.stride; }
  // y[part][row] of a chunk, where there is no panel.
  void Dot(const GqsRun& run, int chunk, float* y) const {
    if (layout.int8 == nullptr) return layout.dot(run, Chunk(chunk), y);
    layout.int8_dot(run, scale_.data() + chunk * layout.scale_stride, Chunk(chunk), y);
  }

  const DecodeXLayout layout;

 private:
  struct RowScratch;
  uint8_t* bytes() const { return reinterpret_cast<uint8_t*>(data_.data()); }
  void Put(int64_t m, const void* row, int piece) const;
  void FillRow(int64_t m, const RowScratch& scratch) const;

  const TileKernels& tiles_;
  const GqsStructure& s_;
  const LinearArgs& a_;
  Scratch data_, scale_;
};

}  // namespace sparsekern
