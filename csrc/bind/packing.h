// SPDX-License-Identifier: Apache-2.0
// What the formats' functions at NumPy level share: a format's packer, unpacker and validation
// between arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "bind/numpy_arrays.h"
#include "bind/register.h"

namespace sparsekern::bind {

// `parse` is the format's Parse*Structure.
template <typename Structure>
Structure ParseArray(const char* op, const pybind11::array& structure,
                     Status (*parse)(const void*, size_t, const char*, Structure*)) {
  CheckArray(op, "structure", structure, 1, 1);
  Structure parsed;
  Raise(parse(structure.data(), static_cast<size_t>(structure.nbytes()), op, &parsed));
  return parsed;
}

// `validate` is the format's Validate*.
using ValidateFn = Status (*)(const void*, size_t, const void*, int64_t, DType);

inline void ValidateArrays(const char* op, const pybind11::array& values,
                           const pybind11::array& structure, const std::string& dtype_name,
                           ValidateFn validate) {
  const DType dtype = DTypeFromName(op, dtype_name);
  CheckArray(op, "values", values, 1, static_cast<ssize_t>(SizeOf(dtype)));
  CheckArray(op, "structure", structure, 1, 1);
  Status status;
  {
    const pybind11::gil_scoped_release release;
    status = validate(structure.data(), static_cast<size_t>(structure.nbytes()), values.data(),
                      values.size(), dtype);
  }
  Raise(status);
}

// What walks the entries must not meet an index that was never checked.
inline void ValidatePattern(const pybind11::array& structure, int64_t value_count,
                            ValidateFn validate) {
  Status status;
  {
    const pybind11::gil_scoped_release release;
    const std::vector<uint8_t> zeros(static_cast<size_t>(value_count), 0);
    status = validate(structure.data(), static_cast<size_t>(structure.nbytes()), zeros.data(),
                      value_count, DType::kI8);
  }
  Raise(status);
}

// plan(packer, dense, dtype, rows, cols, mask) is the packer's Plan with the format's own
// arguments.
template <typename Packer, typename Plan>
pybind11::tuple PackArrays(const char* op, const pybind11::array& dense,
                           const std::string& dtype_name,
                           const std::optional<pybind11::array>& mask, const Plan& plan) {
  const DType dtype = DTypeFromName(op, dtype_name);
  CheckArray(op, "dense", dense, 2, static_cast<ssize_t>(SizeOf(dtype)));
  const uint8_t* mask_data = MaskData(op, dense, mask);
  Packer packer;
  Status status;
  {
    const pybind11::gil_scoped_release release;
    status = plan(packer, dense.data(), dtype, dense.shape(0), dense.shape(1), mask_data);
  }
  Raise(status);
  pybind11::array values = NewArray(NumpyType(dtype), packer.value_count());
  pybind11::array structure =
      NewArray(pybind11::dtype::of<uint8_t>(), static_cast<int64_t>(packer.structure_bytes()));
  void* values_data = values.mutable_data();
  void* structure_data = structure.mutable_data();
  {
    const pybind11::gil_scoped_release release;
    packer.Fill(values_data, structure_data);
  }
  return pybind11::make_tuple(values, structure);
}

// Parts that were validated.
template <typename Structure>
pybind11::array UnpackArrays(const Structure& parsed, const pybind11::array& values, DType dtype,
                             void (*unpack)(const Structure&, const void*, DType, void*)) {
  pybind11::array dense = NewArray(NumpyType(dtype), parsed.rows, parsed.cols);
  void* dense_data = dense.mutable_data();
  const pybind11::gil_scoped_release release;
  unpack(parsed, values.data(), dtype, dense_data);
  return dense;
}

// A pattern that was validated.
template <typename Structure>
pybind11::array MaskArray(const Structure& parsed, void (*mask)(const Structure&, uint8_t*)) {
  pybind11::array result = NewArray(pybind11::dtype::of<bool>(), parsed.rows, parsed.cols);
  auto* data = static_cast<uint8_t*>(result.mutable_data());
  const pybind11::gil_scoped_release release;
  mask(parsed, data);
  return result;
}

}  // namespace sparsekern::bind
