// SPDX-License-Identifier: Apache-2.0
// What the exported functions of the WebAssembly module share: the last error, checks of numbers,
// and the functions that every format has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "sparsekern/isa.h"
#include "sparsekern/linear.h"
#include "sparsekern/parallel.h"
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

// ---- what formats export alike -----------------------------------------------------------------

// sk_<prefix>_delete, _rows and _cols of a matrix.
#define SPARSEKERN_EXPORT_SHAPE(prefix, Matrix)                \
  SPARSEKERN_EXPORT(sk_##prefix##_delete)                      \
  void sk_##prefix##_delete(Matrix* matrix) { delete matrix; } \
  SPARSEKERN_EXPORT(sk_##prefix##_rows)                        \
  uint32_t sk_##prefix##_rows(const Matrix* matrix) {          \
    return static_cast<uint32_t>(matrix->structure.rows);      \
  }                                                            \
  SPARSEKERN_EXPORT(sk_##prefix##_cols)                        \
  uint32_t sk_##prefix##_cols(const Matrix* matrix) {          \
    return static_cast<uint32_t>(matrix->structure.cols);      \
  }

// The functions of a PackedMatrix of the format whose C++ names end in Format (ValidateCsr, ...):
// - sk_<prefix>_new checks everything docs/formats.md demands, as of untrusted input; scale: [rows]
//   for int8, else null.
// - sk_<prefix>_unpack writes dense: rows x cols elements of the matrix's dtype (int8: without the
//   scale).
// - sk_<prefix>_linear: x: x_rows x cols, rows x_stride elements apart; y: x_rows x rows, rows
//   y_stride apart; bias: [rows] or null.
// - sk_<prefix>_linear_kernel: valid until the next call that answers a name.
#define SPARSEKERN_EXPORT_MATRIX(prefix, Format)                                                 \
  SPARSEKERN_EXPORT(sk_##prefix##_new)                                                           \
  sparsekern::Format##Matrix* sk_##prefix##_new(                                                 \
      const void* structure, uint32_t structure_bytes, const void* values, uint32_t value_count, \
      uint32_t dtype, const float* scale, uint32_t scale_count) {                                \
    return sparsekern::wasm::NewMatrix(                                                          \
        #prefix, sparsekern::Validate##Format, sparsekern::Parse##Format##Structure, structure,  \
        structure_bytes, values, value_count, dtype, scale, scale_count);                        \
  }                                                                                              \
  SPARSEKERN_EXPORT_SHAPE(prefix, sparsekern::Format##Matrix)                                    \
  SPARSEKERN_EXPORT(sk_##prefix##_unpack)                                                        \
  void sk_##prefix##_unpack(const sparsekern::Format##Matrix* matrix, void* dense) {             \
    sparsekern::Unpack##Format(matrix->structure, matrix->values, matrix->dtype, dense);         \
  }                                                                                              \
  SPARSEKERN_EXPORT(sk_##prefix##_linear)                                                        \
  int32_t sk_##prefix##_linear(const sparsekern::Format##Matrix* matrix, const void* x, void* y, \
                               uint32_t dtype, uint32_t x_rows, uint32_t x_stride,               \
                               uint32_t y_stride, const float* bias, uint32_t activation) {      \
    using namespace sparsekern::wasm;                                                            \
    sparsekern::Status status = CheckDType(#prefix "_linear", dtype);                            \
    if (status.ok()) {                                                                           \
      status = sparsekern::Format##Linear(                                                       \
          *matrix, LinearArgsOf(x, y, dtype, x_rows, x_stride, y_stride, bias, activation),      \
          sparsekern::Serial());                                                                 \
    }                                                                                            \
    return Report(status);                                                                       \
  }                                                                                              \
  SPARSEKERN_EXPORT(sk_##prefix##_linear_kernel)                                                 \
  const char* sk_##prefix##_linear_kernel(const sparsekern::Format##Matrix* matrix,              \
                                          uint32_t x_rows) {                                     \
    return sparsekern::wasm::Keep(                                                               \
        sparsekern::Format##LinearKernelName(*matrix, x_rows, sparsekern::DetectedIsa()));       \
  }

// <prefix>_value_count (packer->GetCount()), _structure_bytes, _fill and _delete of a packer: ask
// for the sizes, allocate, fill, delete.
#define SPARSEKERN_EXPORT_PACKER(prefix, Packer, GetCount)                  \
  SPARSEKERN_EXPORT(prefix##_value_count)                                   \
  uint32_t prefix##_value_count(const Packer* packer) {                     \
    return static_cast<uint32_t>(packer->GetCount());                       \
  }                                                                         \
  SPARSEKERN_EXPORT(prefix##_structure_bytes)                               \
  uint32_t prefix##_structure_bytes(const Packer* packer) {                 \
    return static_cast<uint32_t>(packer->structure_bytes());                \
  }                                                                         \
  SPARSEKERN_EXPORT(prefix##_fill)                                          \
  void prefix##_fill(const Packer* packer, void* values, void* structure) { \
    packer->Fill(values, structure);                                        \
  }                                                                         \
  SPARSEKERN_EXPORT(prefix##_delete) void prefix##_delete(Packer* packer) { delete packer; }
