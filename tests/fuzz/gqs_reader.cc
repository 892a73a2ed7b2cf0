// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: any bytes as a gqs matrix. What the validator accepts packs again to the same
// bytes; what it refuses but the parser takes must still be safe to multiply with.
//
// An input is: kind of the scales (1 byte), length of the structure (3 bytes, little-endian),
// structure, values, scales. tests/fuzz/make_seeds.py writes valid ones.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "sparsekern/gqs_linear.h"

namespace sparsekern {
namespace {

// Larger matrices find nothing that small ones do not, and take memory and time.
constexpr int64_t kMaxElements = 1 << 16;

void Require(bool condition) {
  if (!condition) std::abort();
}

void Multiply(const GqsMatrix& w, int64_t x_rows) {
  const GqsStructure& s = w.structure;
  const std::vector<float> x(static_cast<size_t>(x_rows * s.cols), 1.0f);
  std::vector<float> y(static_cast<size_t>(x_rows * s.rows));
  LinearArgs args;
  args.x = x.data();
  args.y = y.data();
  args.x_rows = x_rows;
  args.x_stride = s.cols;
  args.y_stride = s.rows;
  Require(GqsLinear(w, args, Serial()).ok());
}

}  // namespace
}  // namespace sparsekern

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekern;
  if (size < 4) return 0;
  const auto kind = static_cast<GqsScale>(data[0] % 4);
  const size_t wanted =
      data[1] | static_cast<size_t>(data[2]) << 8 | static_cast<size_t>(data[3]) << 16;
  const size_t length = std::min(wanted, size - 4);
  // Exact copies: AddressSanitizer then sees the first byte read beyond them.
  const std::vector<uint8_t> structure(data + 4, data + 4 + length);
  const std::vector<uint8_t> rest(data + 4 + length, data + size);

  GqsMatrix w;
  GqsStructure& s = w.structure;
  const bool parsed = ParseGqsStructure(structure.data(), structure.size(), "fuzz", &s).ok();
  if (!parsed || s.rows > kMaxElements || s.cols > kMaxElements || s.rows * s.cols > kMaxElements) {
    return 0;
  }
  const auto value_bytes = std::min(rest.size(), static_cast<size_t>(s.value_bytes()));
  std::vector<uint8_t> values(rest.begin(), rest.begin() + static_cast<int64_t>(value_bytes));
  std::vector<uint8_t> scale(rest.begin() + static_cast<int64_t>(value_bytes), rest.end());
  const bool valid = ValidateGqs(structure.data(), structure.size(), values.data(),
                                 static_cast<int64_t>(values.size()), scale.data(),
                                 static_cast<int64_t>(scale.size() / SizeOf(kind)), kind)
                         .ok();
  values.resize(static_cast<size_t>(s.value_bytes()));
  scale.resize(static_cast<size_t>(s.scale_count()) * SizeOf(kind));
  w.values = values.data();
  w.scale = scale.data();
  w.kind = kind;
  if (s.row_scale == (kind == GqsScale::kU8)) {
    Multiply(w, 1);
    Multiply(w, 20);
  }
  if (!valid) return 0;

  std::vector<int8_t> codes(static_cast<size_t>(s.rows * s.cols));
  std::vector<uint8_t> mask(static_cast<size_t>(s.rows * s.row_groups));
  UnpackGqs(s, values.data(), codes.data());
  GqsMask(s, mask.data());
  std::vector<float> row_scale(s.row_scale ? static_cast<size_t>(s.rows) : 0);
  std::copy_n(s.row_scale_bytes, row_scale.size() * 4,
              reinterpret_cast<uint8_t*>(row_scale.data()));
  GqsPacker packer;
  Require(packer
              .Plan({codes.data(), mask.data(), s.row_scale ? row_scale.data() : nullptr, s.rows,
                     s.cols, s.group, s.bits, s.zeros})
              .ok());
  std::vector<uint8_t> packed(static_cast<size_t>(packer.value_bytes()));
  std::vector<uint8_t> again(packer.structure_bytes());
  packer.Fill(packed.data(), again.data());
  Require(packed == values);
  GqsStructure second;
  Require(ParseGqsStructure(again.data(), again.size(), "fuzz", &second).ok());
  if (second.task_groups == s.task_groups) Require(again == structure);  // a writer may choose them
  return 0;
}
