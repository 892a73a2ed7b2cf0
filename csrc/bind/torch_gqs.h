// SPDX-License-Identifier: Apache-2.0
// What the operators of group-quantized matrices share on every device.
#pragma once

#include <string>

#include "bind/torch_args.h"
#include "sparsekern/gqs.h"

namespace sparsekern::bind {

inline GqsScale ScaleKind(const char* op, const Tensor& scale) {
  switch (scale.scalar_type()) {
    case ScalarType::Float: return GqsScale::kF32;
    case ScalarType::BFloat16: return GqsScale::kBF16;
    case ScalarType::Half: return GqsScale::kF16;
    case ScalarType::Byte: return GqsScale::kU8;
    default: break;
  }
  Fail(
      Status::InvalidType(std::string(op) + ": scale must be float32, bfloat16, float16 or uint8"));
}

}  // namespace sparsekern::bind
