// SPDX-License-Identifier: Apache-2.0
#include "base/linear_driver.h"

#include <string>

namespace sparsekern {

Status CheckValues(const char* op, DType dtype, const float* scale) {
  if (!IsValid(dtype))
    return Status::InvalidType(std::string(op) + ": values have an unknown dtype");
  if ((dtype == DType::kI8) != (scale != nullptr)) {
    return Status::InvalidValue(std::string(op) +
                                ": scale must be given for int8 values and for no others");
  }
  return Status::Ok();
}

Status CheckActivations(const char* op, DType dtype, Activation activation) {
  if (!IsValid(dtype) || dtype == DType::kI8) {
    return Status::InvalidType(std::string(op) + ": x must be float32, bfloat16 or float16, got " +
                               Name(dtype));
  }
  if (!IsValid(activation)) {
    return Status::InvalidValue(std::string(op) + ": activation must be in [0, 6], got " +
                                std::to_string(static_cast<int>(activation)));
  }
  return Status::Ok();
}

Status CheckLinear(const char* op, const LinearArgs& args, int64_t rows, int64_t cols) {
  SPARSEKERN_RETURN_IF_ERROR(CheckActivations(op, args.dtype, args.epilogue.activation));
  if (args.x_rows < 0 || args.x_stride < cols || args.y_stride < rows) {
    return Status::InvalidValue(std::string(op) +
                                ": x_stride must be at least cols and y_stride at least rows");
  }
  return Status::Ok();
}

Status OutOfScratch(const char* op) {
  return Status::OutOfMemory(std::string(op) + ": no memory for scratch buffers");
}

void StoreRow(const TileKernels& tiles, const LinearArgs& a, const float* scale, int64_t m,
              int64_t first, int64_t n, float* sums) {
  tiles.finish_row(sums, n, scale != nullptr ? scale + first : nullptr,
                   a.epilogue.bias != nullptr ? a.epilogue.bias + first : nullptr,
                   a.epilogue.activation);
  tiles.narrow[static_cast<int>(a.dtype)](sums, n, OutAt(a, m, first));
}

void StoreTile(const TileKernels& tiles, const LinearArgs& a, const float* scale, const XTile& tile,
               int64_t first, int64_t n, float* sums) {
  const float* bias = a.epilogue.bias != nullptr ? a.epilogue.bias + first : nullptr;
  if (scale != nullptr) scale += first;
  if (!IsClamp(a.epilogue.activation)) {
    tiles.finish_channels(sums, n, tile.width, scale, bias, a.epilogue.activation);
    scale = bias = nullptr;
  }
  tiles.store_rows[static_cast<int>(a.dtype)](sums, tile.width, tile.rows, n, scale, bias,
                                              ClampOf(a.epilogue.activation),
                                              OutAt(a, tile.begin, first), a.y_stride);
}

}  // namespace sparsekern
