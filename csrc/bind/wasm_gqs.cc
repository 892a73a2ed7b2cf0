// SPDX-License-Identifier: Apache-2.0
// The C functions that the WebAssembly module exports for the format gqs; the rules are those of
// wasm_api.cc. Kinds of scales are the numbers of GqsScale.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>

#include "bind/wasm_api.h"
#include "sparsekern/gqs.h"
#include "sparsekern/gqs_linear.h"

using sparsekern::GqsMatrix;
using sparsekern::GqsPacker;
using sparsekern::GqsScale;
using sparsekern::GqsStructure;
using sparsekern::Status;
using namespace sparsekern::wasm;

namespace {

// A number that fits no uint8_t stays invalid.
GqsScale ScaleOf(uint32_t number) {
  return static_cast<GqsScale>(static_cast<uint8_t>(number < 255 ? number : 255));
}

// Row by row, the groups that are kept; visit(row, group of the row, kept group).
template <typename Visit>
void ForEachGroup(const GqsStructure& s, const Visit& visit) {
  int64_t kept = 0;
  for (int64_t row = 0; row < s.rows; ++row) {
    const uint8_t* mask = s.mask + 2 * row * s.words;
    for (int64_t g = 0; g < s.row_groups; ++g) {
      if ((mask[g / 8] >> (g % 8) & 1) != 0) visit(row, g, kept++);
    }
  }
}

int64_t GroupEnd(const GqsStructure& s, int64_t group) {
  return std::min<int64_t>(s.cols, (group + 1) * s.group);
}

// Stores a scale as `kind`, which is not kU8; what it then is.
float Store(float scale, GqsScale kind, void* out, int64_t i) {
  uint8_t* at = static_cast<uint8_t*>(out) + static_cast<size_t>(i) * sparsekern::SizeOf(kind);
  if (kind == GqsScale::kF32) {
    std::memcpy(at, &scale, 4);
  } else {
    const uint16_t bits =
        kind == GqsScale::kF16 ? sparsekern::F16FromF32(scale) : sparsekern::BF16FromF32(scale);
    std::memcpy(at, &bits, 2);
  }
  return sparsekern::GqsScaleAt(out, kind, i);
}

std::string At(const char* what, int64_t row, int64_t group) {
  return std::string("gqs: ") + what + " (row " + std::to_string(row) + ", group " +
         std::to_string(group) + ")";
}

// Rounds one kept group of n weights; `scale` gets element `kept`.
Status QuantizeGroup(const float* w, int64_t n, int bits, GqsScale kind, int64_t row, int64_t group,
                     int8_t* codes, void* scale, int64_t kept) {
  float most = 0.0f;
  for (int64_t k = 0; k < n; ++k) {
    if (!std::isfinite(w[k])) {
      return Status::InvalidValue(
          At("weights must be finite where they are kept, got NaN or infinity", row, group));
    }
    most = std::max(most, std::fabs(w[k]));
  }
  const float high = static_cast<float>((1 << (bits - 1)) - 1);
  // The least normal number stands for smaller ones too, whose groups round to 0.
  const float least = kind == GqsScale::kF16 ? 0x1p-14f : 0x1p-126f;
  const float wanted = most == 0.0f ? 1.0f : std::max(most / high, least);
  const float stored = Store(wanted, kind, scale, kept);
  if (!std::isfinite(stored)) {
    return Status::InvalidValue(
        At("scales must be numbers of their dtype, got one beyond", row, group));
  }
  for (int64_t k = 0; k < n; ++k) {
    codes[k] = static_cast<int8_t>(std::clamp(std::nearbyint(w[k] / stored), -high, high));
  }
  return Status::Ok();
}

}  // namespace

// ---- a packed matrix ---------------------------------------------------------------------------

// Checks everything docs/formats.md demands, as of untrusted input. values: bytes; scale:
// scale_count elements of `kind`, the scales and then the zero-points.
SPARSEKERN_EXPORT(sk_gqs_new)
GqsMatrix* sk_gqs_new(const void* structure, uint32_t structure_bytes, const void* values,
                      uint32_t value_bytes, uint32_t kind, const void* scale,
                      uint32_t scale_count) {
  GqsMatrix matrix;
  matrix.values = static_cast<const uint8_t*>(values);
  matrix.scale = scale;
  matrix.kind = ScaleOf(kind);
  Status status = sparsekern::ValidateGqs(structure, structure_bytes, values, value_bytes, scale,
                                          scale_count, matrix.kind);
  if (status.ok()) {
    status = sparsekern::ParseGqsStructure(structure, structure_bytes, "gqs", &matrix.structure);
  }
  if (Report(status) != 0) return nullptr;
  return new (std::nothrow) GqsMatrix(matrix);
}
SPARSEKERN_EXPORT_SHAPE(gqs, GqsMatrix)

SPARSEKERN_EXPORT(sk_gqs_bits) uint32_t sk_gqs_bits(const GqsMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.bits);
}
SPARSEKERN_EXPORT(sk_gqs_group) uint32_t sk_gqs_group(const GqsMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.group);
}
// Whether each group has a zero-point.
SPARSEKERN_EXPORT(sk_gqs_zeros) uint32_t sk_gqs_zeros(const GqsMatrix* matrix) {
  return matrix->structure.zeros ? 1 : 0;
}
// Weights in kept groups, codes of 0 included; of 2 bits they may be more than 2^32.
SPARSEKERN_EXPORT(sk_gqs_kept) double sk_gqs_kept(const GqsMatrix* matrix) {
  const GqsStructure& s = matrix->structure;
  int64_t kept = 0;
  ForEachGroup(s, [&](int64_t, int64_t g, int64_t) { kept += GroupEnd(s, g) - g * s.group; });
  return static_cast<double>(kept);
}
// dense: rows x cols of float32, the weights themselves; 0 where pruned.
SPARSEKERN_EXPORT(sk_gqs_unpack) void sk_gqs_unpack(const GqsMatrix* matrix, float* dense) {
  const GqsStructure& s = matrix->structure;
  const int64_t n = s.rows * s.cols;
  // Codes go to the last quarter of the result: weight i ends before code i + 1 begins.
  int8_t* codes = reinterpret_cast<int8_t*>(dense) + 3 * n;
  sparsekern::UnpackGqs(s, matrix->values, codes);
  for (int64_t i = 0; i < n; ++i) {
    const float code = codes[i];
    std::memcpy(dense + i, &code, sizeof code);
  }
  ForEachGroup(s, [&](int64_t row, int64_t g, int64_t kept) {
    float scale = sparsekern::GqsScaleAt(matrix->scale, matrix->kind, kept);
    if (s.row_scale) {
      float factor;
      std::memcpy(&factor, s.row_scale_bytes + 4 * row, 4);
      scale *= factor;
    }
    const float zero =
        s.zeros ? sparsekern::GqsScaleAt(matrix->scale, matrix->kind, s.groups + kept) : 0.0f;
    for (int64_t k = g * s.group; k < GroupEnd(s, g); ++k) {
      float* weight = dense + row * s.cols + k;
      *weight = (*weight - zero) * scale;
    }
  });
}

// ---- packing -----------------------------------------------------------------------------------

// Rounds dense float32 rows x cols, each group to the multiples of its largest magnitude /
// (2^(bits-1) - 1) that are nearest. mask: [rows][ceil(cols / group)], nonzero = kept; where `fill`
// is not 0 it is written first: kept is what has a weight that differs from 0. codes: [rows][cols],
// written where kept. scale: one of `kind` (f32, bf16 or f16) for each kept group, row by row.
SPARSEKERN_EXPORT(sk_gqs_quantize)
int32_t sk_gqs_quantize(const float* dense, uint32_t rows, uint32_t cols, uint32_t bits,
                        uint32_t group, uint32_t kind, uint8_t* mask, uint32_t fill, int8_t* codes,
                        void* scale) {
  if ((bits != 2 && bits != 4 && bits != 8) || group == 0 || kind >= 3) {
    return Report(Status::InvalidValue(
        "gqs_quantize: bits must be 2, 4 or 8, group above 0 and kind 0, 1 or 2, got " +
        std::to_string(bits) + ", " + std::to_string(group) + " and " + std::to_string(kind)));
  }
  int64_t kept = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < cols; k += group, ++mask) {
      const int64_t at = row * cols + k, n = std::min<int64_t>(group, cols - k);
      if (fill != 0) {
        *mask = std::any_of(dense + at, dense + at + n, [](float w) { return w != 0.0f; });
      }
      if (*mask == 0) continue;
      const Status status = QuantizeGroup(dense + at, n, static_cast<int>(bits), ScaleOf(kind), row,
                                          k / group, codes + at, scale, kept++);
      if (!status.ok()) return Report(status);
    }
  }
  return Report(Status::Ok());
}

// codes, mask: as sk_gqs_quantize writes them, or quantized elsewhere. zeros: whether the scales
// come with zero-points; row_scale: [rows], the factors of 8-bit scales, or null. All must stay as
// they are until sk_gqs_packer_fill.
SPARSEKERN_EXPORT(sk_gqs_packer_new)
GqsPacker* sk_gqs_packer_new(const int8_t* codes, uint32_t rows, uint32_t cols, const uint8_t* mask,
                             uint32_t bits, uint32_t group, uint32_t zeros,
                             const float* row_scale) {
  return NewPacker<GqsPacker>("gqs_pack", 0, [&](GqsPacker* packer) {
    sparsekern::GqsSource source;
    source.codes = codes;
    source.mask = mask;
    source.row_scale = row_scale;
    source.rows = rows;
    source.cols = cols;
    source.group = static_cast<int>(std::min(group, 255u));  // more is no group either
    source.bits = static_cast<int>(std::min(bits, 255u));
    source.zeros = zeros != 0;
    return packer->Plan(source);
  });
}
// Kept groups: so many scales.
SPARSEKERN_EXPORT(sk_gqs_packer_groups) uint32_t sk_gqs_packer_groups(const GqsPacker* packer) {
  return static_cast<uint32_t>(packer->groups());
}
SPARSEKERN_EXPORT_PACKER(sk_gqs_packer, GqsPacker, value_bytes)

// ---- products ----------------------------------------------------------------------------------

// As sk_csr_linear; int8_x: 1 rounds each group of x to int8 first (gqs_linear.h), 0 does not.
SPARSEKERN_EXPORT(sk_gqs_linear)
int32_t sk_gqs_linear(const GqsMatrix* matrix, const void* x, void* y, uint32_t dtype,
                      uint32_t x_rows, uint32_t x_stride, uint32_t y_stride, const float* bias,
                      uint32_t activation, uint32_t int8_x) {
  if (const Status status = CheckDType("gqs_linear", dtype); !status.ok()) return Report(status);
  sparsekern::LinearArgs args =
      LinearArgsOf(x, y, dtype, x_rows, x_stride, y_stride, bias, activation);
  args.int8_x = int8_x != 0;
  return Report(sparsekern::GqsLinear(*matrix, args, sparsekern::Serial()));
}

// Valid until the next call that answers a name.
SPARSEKERN_EXPORT(sk_gqs_linear_kernel)
const char* sk_gqs_linear_kernel(const GqsMatrix* matrix, uint32_t x_rows, uint32_t int8_x) {
  return Keep(
      sparsekern::GqsLinearKernelName(*matrix, x_rows, sparsekern::DetectedIsa(), int8_x != 0));
}
