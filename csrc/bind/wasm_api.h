// SPDX-License-Identifier: Apache-2.0
// What the exported functions of the WebAssembly module share: the last error, checks of numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "sparsekern/linear.h"
#include "sparsekern/status.h"

#define SPARSEKERN_EXPORT(name) extern "C" __attribute__((export_name(#name)))

namespace sparsekern::wasm {

// What sk_error and the functions that answer a name point into; WebAssembly has one thread.
inline std::string& LastError() {
  static std::string message;
  return message;
}
inline const char* Keep(std::string text) {
  static std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

inline int32_t Report(const Status& status) {
  LastError() = status.message();
  return static_cast<int32_t>(status.code());
}

inline DType DTypeOf(uint32_t number) { return static_cast<DType>(static_cast<uint8_t>(number)); }

// A number that fits no uint8_t stays invalid instead of wrapping round to a valid one.
inline Activation ActivationOf(uint32_t number) {
  return static_cast<Activation>(static_cast<uint8_t>(number < 255 ? number : 255));
}

inline Epilogue EpilogueOf(const float* bias, uint32_t activation) {
  Epilogue epilogue;
  epilogue.bias = bias;
  epilogue.activation = ActivationOf(activation);
  return epilogue;
}

inline Status CheckDType(const char* name, uint32_t dtype) {
  if (dtype < 256 && IsValid(DTypeOf(dtype))) return Status::Ok();
  return Status::InvalidType(std::string(name) +
                             ": dtype must be 0 (float32), 1 (bfloat16), "
                             "2 (float16) or 3 (int8), got " +
                             std::to_string(dtype));
}

// A matrix of checked parts, which it borrows; null, with the error kept, where they are wrong.
// scale: [rows] for int8, else null.
template <typename Structure>
PackedMatrix<Structure>* NewMatrix(
    const char* name, Status (*validate)(const void*, size_t, const void*, int64_t, DType),
    Status (*parse)(const void*, size_t, const char*, Structure*), const void* structure,
    uint32_t structure_bytes, const void* values, uint32_t value_count, uint32_t dtype,
    const float* scale, uint32_t scale_count) {
  PackedMatrix<Structure> matrix;
  matrix.values = values;
  matrix.dtype = DTypeOf(dtype);
  matrix.scale = scale;
  Status status = CheckDType(name, dtype);
  if (status.ok()) status = validate(structure, structure_bytes, values, value_count, matrix.dtype);
  if (status.ok()) status = parse(structure, structure_bytes, name, &matrix.structure);
  const int64_t wanted = matrix.dtype == DType::kI8 ? matrix.structure.rows : 0;
  if (status.ok() && (scale_count != wanted || (scale == nullptr) != (wanted == 0))) {
    status =
        Status::InvalidValue(std::string(name) + ": scale must have " + std::to_string(wanted) +
                             " elements, got " + std::to_string(scale_count));
  }
  if (Report(status) != 0) return nullptr;
  return new (std::nothrow) PackedMatrix<Structure>(matrix);
}

// A packer whose plan(packer) went well; null, with the error kept, where it did not.
template <typename Packer, typename Plan>
Packer* NewPacker(const char* name, uint32_t dtype, const Plan& plan) {
  Status status = CheckDType(name, dtype);
  Packer* packer = nullptr;
  if (status.ok()) {
    packer = new (std::nothrow) Packer;
    status =
        packer != nullptr ? plan(packer) : Status::OutOfMemory(std::string(name) + ": no memory");
  }
  if (Report(status) == 0) return packer;
  delete packer;
  return nullptr;
}

inline LinearArgs LinearArgsOf(const void* x, void* y, uint32_t dtype, uint32_t x_rows,
                               uint32_t x_stride, uint32_t y_stride, const float* bias,
                               uint32_t activation) {
  LinearArgs args;
  args.x = x;
  args.y = y;
  args.dtype = DTypeOf(dtype);
  args.x_rows = x_rows;
  args.x_stride = x_stride;
  args.y_stride = y_stride;
  args.epilogue = EpilogueOf(bias, activation);
  return args;
}

}  // namespace sparsekern::wasm
