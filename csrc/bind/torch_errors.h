// SPDX-License-Identifier: Apache-2.0
// How a failed Status becomes a Python exception at an operator of torch.
//
// An exception that leaves an operator reaches Python through pybind11's translators for the
// standard exceptions: there is a way to ValueError and MemoryError, and none to TypeError and
// NotImplementedError. Those two come out as RuntimeError whose text begins with the right name,
// and the Python functions over the operators turn them into it (sparsekern._library.translated).
#pragma once

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "sparsekern/status.h"

namespace sparsekern::bind {

class OutOfMemoryError : public std::bad_alloc {
 public:
  explicit OutOfMemoryError(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

inline void ThrowIfError(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk: return;
    case StatusCode::kInvalidType: throw std::runtime_error("TypeError: " + status.message());
    case StatusCode::kInvalidValue: throw std::invalid_argument(status.message());
    case StatusCode::kUnimplemented:
      throw std::runtime_error("NotImplementedError: " + status.message());
    case StatusCode::kOutOfMemory: throw OutOfMemoryError(status.message());
    case StatusCode::kInternal: break;
  }
  throw std::runtime_error(status.message());
}

}  // namespace sparsekern::bind
