// SPDX-License-Identifier: Apache-2.0
// libFuzzer target of a format of two arrays: any bytes as its matrix. What the validator accepts
// is the one packed form of what it reads as; what it refuses but the parser takes must still be
// safe to read.
//
// An input is: dtype (1 byte), length of the structure (3 bytes, little-endian), structure, values.
// tests/fuzz/make_seeds.py writes valid ones.
//
// Format has Structure, Packer, and static Parse, Validate, Unpack, Mask and Plan as used here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "sparsekern/dtype.h"
#include "sparsekern/status.h"

namespace sparsekern {

inline void Require(bool condition) {
  if (!condition) std::abort();
}

template <typename Format>
int FuzzRoundTrip(const uint8_t* data, size_t size) {
  // Larger matrices find nothing that small ones do not, and take memory and time.
  constexpr int64_t kMaxElements = 1 << 19;
  if (size < 4) return 0;
  const auto dtype = static_cast<DType>(data[0] % 4);
  const size_t wanted =
      data[1] | static_cast<size_t>(data[2]) << 8 | static_cast<size_t>(data[3]) << 16;
  const size_t length = std::min(wanted, size - 4);
  // Exact copies: AddressSanitizer then sees the first byte read beyond them.
  const std::vector<uint8_t> structure(data + 4, data + 4 + length);
  std::vector<uint8_t> values(data + 4 + length, data + size);

  typename Format::Structure s;
  const bool parsed = Format::Parse(structure.data(), structure.size(), "fuzz", &s).ok();
  const auto count = static_cast<int64_t>(values.size() / SizeOf(dtype));
  const bool valid =
      Format::Validate(structure.data(), structure.size(), values.data(), count, dtype).ok();
  Require(parsed || !valid);
  if (!parsed || s.rows > kMaxElements || s.cols > kMaxElements || s.rows * s.cols > kMaxElements) {
    return 0;
  }
  values.resize(static_cast<size_t>(s.value_count()) * SizeOf(dtype));
  std::vector<uint8_t> mask(static_cast<size_t>(s.rows * s.cols));
  std::vector<uint8_t> dense(mask.size() * SizeOf(dtype));
  Format::Unpack(s, values.data(), dtype, dense.data());
  Format::Mask(s, mask.data());
  if (!valid) return 0;

  typename Format::Packer packer;
  Require(Format::Plan(&packer, s, dense.data(), dtype, mask.data()).ok());
  Require(packer.value_count() == s.value_count());
  std::vector<uint8_t> packed(values.size());
  std::vector<uint8_t> again(packer.structure_bytes());
  packer.Fill(packed.data(), again.data());
  Require(again == structure);
  Require(packed == values);
  return 0;
}

}  // namespace sparsekern
