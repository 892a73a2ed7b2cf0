// SPDX-License-Identifier: Apache-2.0
// x as the decode kernels of gqs_linear take it.
#pragma once

#include "ops/gqs_linear/drivers.h"

namespace sparsekern {

// Chunks of `rows` rows: fp32 as [units][rows][16], int8 as kernels.h says.
struct DecodeXLayout {
  DecodeXLayout(const GqsKernels& kernels, const GqsInt8Kernels* int8_or_none, const GqsMatrix& w,
                const LinearArgs& a);

  const GqsInt8Kernels* int8;  // or nullptr
  GqsDotFn dot = nullptr;
  GqsInt8DotFn int8_dot = nullptr;
  int rows = 1, chunks = 1;
  int64_t unit_bytes = 0;
  int64_t stride = 0, scale_stride = 0;  // of a chunk: bytes, floats
};

class DecodeX {
 public:
  DecodeX(const GqsKernels& kernels, const GqsInt8Kernels* int8, const GqsMatrix& w,
          const LinearArgs& a);
  bool ok() const;
  void Fill() const;

  // y[part][row] of a chunk.
  void Dot(const GqsRun& run, int chunk, float* y) const {
    const uint8_t* x = reinterpret_cast<const uint8_t*>(data_.data()) + chunk * layout.stride;
    if (layout.int8 == nullptr) return layout.dot(run, x, y);
    layout.int8_dot(run, scale_.data() + chunk * layout.scale_stride, x, y);
  }

  const DecodeXLayout layout;

 private:
  void Put(int64_t m, const void* row, int piece) const;

  const TileKernels& tiles_;
  const GqsStructure& s_;
  const LinearArgs& a_;
  Scratch data_, scale_;
  Scratch row_, codes_, row_scale_;  // of one row
};

}  // namespace sparsekern
