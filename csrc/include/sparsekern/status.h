// SPDX-License-Identifier: Apache-2.0
// What a library call answers: success, or the kind of failure and a sentence for the user.
#pragma once

#include <string>

namespace sparsekern {

enum class StatusCode {
  kOk,
  kInvalidType,    // an argument's dtype; TypeError in Python
  kInvalidValue,   // a shape, a size, metadata; ValueError
  kUnimplemented,  // a combination that has no kernel; NotImplementedError, lists what exists
  kOutOfMemory,    // MemoryError
  kInternal,       // a bug in the library; RuntimeError
};

// Messages read "operator: argument must ..., got ...". Nothing here throws but for std::bad_alloc
// from copying a message, so that the library also builds with -fno-exceptions.
class [[nodiscard]] Status {
 public:
  Status() = default;  // ok

  static Status Ok() { return Status(); }
  static Status InvalidType(std::string message);
  static Status InvalidValue(std::string message);
  static Status Unimplemented(std::string message);
  static Status OutOfMemory(std::string message);
  static Status Internal(std::string message);

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Status(StatusCode code, std::string message);

  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

}  // namespace sparsekern

// Returns from the enclosing function when `expression` is a failed Status.
#define SPARSEKERN_RETURN_IF_ERROR(expression)             \
  do {                                                     \
    ::sparsekern::Status sparsekern_status = (expression); \
    if (!sparsekern_status.ok()) return sparsekern_status; \
  } while (false)
