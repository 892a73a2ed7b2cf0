// SPDX-License-Identifier: Apache-2.0
// What the packers and the parsers of the formats share: reading and writing bytes that may be
// unaligned, and the checks that every header gets. Private to formats/.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "sparsekern/status.h"

namespace sparsekern {

constexpr uint64_t kAlign = 64;  // of sections; also the length of every header
constexpr int64_t kMaxExtent = int64_t{1} << 31;

constexpr uint64_t Aligned(uint64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
T ReadAt(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <typename T>
void WriteAt(uint8_t* p, T value) {
  std::memcpy(p, &value, sizeof value);
}

inline std::string Text(int64_t v) { return std::to_string(v); }

inline bool AllZero(const uint8_t* p, uint64_t n) {
  for (uint64_t i = 0; i < n; ++i) {
    if (p[i] != 0) return false;
  }
  return true;
}

inline Status CheckExtents(const char* name, int64_t rows, int64_t cols) {
  if (rows < 1 || cols < 1 || rows >= kMaxExtent || cols >= kMaxExtent) {
    return Status::InvalidValue(std::string(name) + ": rows and cols must be in [1, 2^31), got " +
                                Text(rows) + " x " + Text(cols));
  }
  return Status::Ok();
}

// The length of a header, its four letters and its version; `op` begins the error's text.
inline Status CheckHead(const std::string& op, const uint8_t* base, uint64_t bytes,
                        const char* magic, uint32_t version) {
  if (bytes < kAlign) {
    return Status::InvalidValue(op + " must have at least 64 bytes, got " +
                                Text(static_cast<int64_t>(bytes)));
  }
  if (std::memcmp(base, magic, 4) != 0) {
    return Status::InvalidValue(op + " must begin with " + magic);
  }
  const uint32_t found = ReadAt<uint32_t>(base + 4);
  if (found != version) {
    return Status::InvalidValue(op + " version must be " + Text(version) + ", got " + Text(found) +
                                (found > version ? "; a newer sparsekern wrote it" : ""));
  }
  return Status::Ok();
}

}  // namespace sparsekern
