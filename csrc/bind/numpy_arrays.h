// SPDX-License-Identifier: Apache-2.0
// NumPy arrays as arguments and results of the formats' functions.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <string>
#include <vector>

#include "bind/register.h"
#include "sparsekern/dtype.h"

namespace sparsekern::bind {

inline DType DTypeFromName(const char* op, const std::string& name) {
  for (const DType d : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
    if (name == Name(d)) return d;
  }
  Raise(Status::InvalidType(std::string(op) +
                            ": dtype must be float32, bfloat16, float16 or int8, got " + name));
  return DType::kF32;
}

// NumPy has no bfloat16, so 16-bit values travel as uint16 (float16 arrays are taken too).
inline pybind11::dtype NumpyType(DType dtype) {
  switch (dtype) {
    case DType::kF32: return pybind11::dtype::of<float>();
    case DType::kBF16:
    case DType::kF16: return pybind11::dtype::of<uint16_t>();
    case DType::kI8: return pybind11::dtype::of<int8_t>();
  }
  return pybind11::dtype::of<float>();
}

inline void CheckArray(const char* op, const char* argument, const pybind11::array& array, int dims,
                       ssize_t itemsize) {
  const std::string name = std::string(op) + ": " + argument;
  if (array.ndim() != dims) {
    Raise(Status::InvalidValue(name + " must have " + std::to_string(dims) + " dimension(s), got " +
                               std::to_string(array.ndim())));
  }
  if (array.itemsize() != itemsize) {
    Raise(Status::InvalidType(name + " must have " + std::to_string(itemsize) +
                              " byte(s) an element, got " + std::to_string(array.itemsize())));
  }
  if ((array.flags() & pybind11::array::c_style) == 0) {
    Raise(Status::InvalidValue(name + " must be C-contiguous"));
  }
}

// The mask of `dense`, checked; null where there is none.
inline const uint8_t* MaskData(const char* op, const pybind11::array& dense,
                               const std::optional<pybind11::array>& mask) {
  if (!mask.has_value()) return nullptr;
  CheckArray(op, "mask", *mask, 2, 1);
  if (mask->shape(0) != dense.shape(0) || mask->shape(1) != dense.shape(1)) {
    Raise(Status::InvalidValue(std::string(op) + ": mask must have the shape of dense"));
  }
  return static_cast<const uint8_t*>(mask->data());
}

inline pybind11::array NewArray(const pybind11::dtype& dtype, int64_t length) {
  return pybind11::array(dtype, std::vector<ssize_t>{static_cast<ssize_t>(length)});
}
inline pybind11::array NewArray(const pybind11::dtype& dtype, int64_t rows, int64_t cols) {
  return pybind11::array(
      dtype, std::vector<ssize_t>{static_cast<ssize_t>(rows), static_cast<ssize_t>(cols)});
}

}  // namespace sparsekern::bind
