// SPDX-License-Identifier: Apache-2.0
// What the gqs tests share: a random matrix with its weights in double, and packed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "csr_case.h"
#include "sparsekern/gqs_linear.h"

namespace sparsekern::testing {

struct GqsKind {
  int bits;
  int group;
  GqsScale scale = GqsScale::kF32;
  bool zeros = false;
};

inline std::string Text(const GqsKind& kind) {
  return "w" + std::to_string(kind.bits) + "g" + std::to_string(kind.group) + " scale " +
         std::to_string(static_cast<int>(kind.scale)) + (kind.zeros ? " zeros" : "");
}

// Buffers have their exact sizes, so that AddressSanitizer sees the first byte read beyond them.
struct GqsCase {
  int64_t rows = 0;
  int64_t cols = 0;
  GqsKind kind;
  std::vector<int8_t> codes;
  std::vector<uint8_t> mask;     // [rows][groups of a row]
  std::vector<double> weight;    // [rows][cols], 0 where pruned
  std::vector<float> row_scale;  // with 8-bit scales
  std::vector<uint8_t> values, structure, scale;

  int64_t RowGroups() const { return (cols + kind.group - 1) / kind.group; }
  GqsSource Source() const {
    return {codes.data(), mask.data(), row_scale.empty() ? nullptr : row_scale.data(),
            rows,         cols,        kind.group,
            kind.bits,    kind.zeros};
  }
  GqsMatrix Matrix() const {
    GqsMatrix w;
    const Status status =
        ParseGqsStructure(structure.data(), structure.size(), "test", &w.structure);
    EXPECT_TRUE(status.ok()) << status.message();
    w.values = values.data();
    w.scale = scale.data();
    w.kind = kind.scale;
    return w;
  }
  Status Validate() const {
    return ValidateGqs(structure.data(), structure.size(), values.data(),
                       static_cast<int64_t>(values.size()), scale.data(),
                       static_cast<int64_t>(scale.size() / SizeOf(kind.scale)), kind.scale);
  }
};

// Stores v as a scale; returns the number that is stored.
inline double PutScale(GqsScale kind, float v, std::vector<uint8_t>* out) {
  const auto put = [out](auto bits) {
    const auto* p = reinterpret_cast<const uint8_t*>(&bits);
    out->insert(out->end(), p, p + sizeof bits);
  };
  switch (kind) {
    case GqsScale::kF32: put(v); return static_cast<double>(v);
    case GqsScale::kBF16:
      put(BF16FromF32(v));
      return static_cast<double>(F32FromBF16(BF16FromF32(v)));
    case GqsScale::kF16: put(F16FromF32(v)); return static_cast<double>(F32FromF16(F16FromF32(v)));
    case GqsScale::kU8:
      put(static_cast<uint8_t>(v));
      return static_cast<double>(static_cast<uint8_t>(v));
  }
  return 0;
}

// One row in four is full, empty or nearly so. may_keep(row, first column of a group), where given,
// rules the others out.
inline GqsCase MakeGqsCase(int64_t rows, int64_t cols, GqsKind kind, double density = 0.5,
                           uint64_t seed = 1,
                           const std::function<bool(int64_t, int64_t)>& may_keep = nullptr) {
  GqsCase c;
  c.rows = rows;
  c.cols = cols;
  c.kind = kind;
  Random random(seed);
  const int64_t groups = c.RowGroups();
  const int range = 1 << kind.bits;
  c.codes.resize(static_cast<size_t>(rows * cols));
  for (int8_t& code : c.codes) code = static_cast<int8_t>(random.Below(range) - range / 2);
  c.mask.assign(static_cast<size_t>(rows * groups), 0);
  c.weight.assign(static_cast<size_t>(rows * cols), 0);
  std::vector<uint8_t> zero_bytes;
  for (int64_t r = 0; r < rows; ++r) {
    const int row_kind = random.Below(16);
    double factor = 1;
    if (kind.scale == GqsScale::kU8) {
      c.row_scale.push_back(0.001f + 0.01f * static_cast<float>(random.Uniform()));
      factor = static_cast<double>(c.row_scale.back());
    }
    for (int64_t g = 0; g < groups; ++g) {
      const bool kept = row_kind == 0 || (row_kind == 1 && g == groups - 1) ||
                        (row_kind > 2 && random.Uniform() < density);
      if (!kept || (may_keep && !may_keep(r, g * kind.group))) continue;
      c.mask[static_cast<size_t>(r * groups + g)] = 1;
      const float s = kind.scale == GqsScale::kU8 ? static_cast<float>(1 + random.Below(255))
                                                  : 0.01f + 0.1f * random.Signed();
      const double stored = PutScale(kind.scale, s == 0 ? 1.0f : s, &c.scale);
      double zero = 0;
      if (kind.zeros) {
        zero =
            PutScale(kind.scale, static_cast<float>(random.Below(range) - range / 2), &zero_bytes);
      }
      for (int64_t k = g * kind.group; k < std::min(cols, (g + 1) * kind.group); ++k) {
        const auto at = static_cast<size_t>(r * cols + k);
        c.weight[at] = (c.codes[at] - zero) * stored * factor;
      }
    }
  }
  c.scale.insert(c.scale.end(), zero_bytes.begin(), zero_bytes.end());
  GqsPacker packer;
  const Status status = packer.Plan(c.Source());
  EXPECT_TRUE(status.ok()) << status.message();
  c.values.assign(static_cast<size_t>(packer.value_bytes()), 0xff);
  c.structure.assign(packer.structure_bytes(), 0xff);
  packer.Fill(c.values.data(), c.structure.data());
  return c;
}

}  // namespace sparsekern::testing
