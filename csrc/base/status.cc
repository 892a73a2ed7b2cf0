// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/status.h"

#include <utility>

namespace sparsekern {

Status::Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

Status Status::InvalidType(std::string message) {
  return Status(StatusCode::kInvalidType, std::move(message));
}

Status Status::InvalidValue(std::string message) {
  return Status(StatusCode::kInvalidValue, std::move(message));
}

Status Status::Unimplemented(std::string message) {
  return Status(StatusCode::kUnimplemented, std::move(message));
}

Status Status::OutOfMemory(std::string message) {
  return Status(StatusCode::kOutOfMemory, std::move(message));
}

Status Status::Internal(std::string message) {
  return Status(StatusCode::kInternal, std::move(message));
}

}  // namespace sparsekern
