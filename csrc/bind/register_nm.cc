// SPDX-License-Identifier: Apache-2.0
// The nm format at NumPy level: pack, unpack, inspect, validate.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bind/numpy_arrays.h"
#include "bind/register.h"
#include "sparsekern/isa.h"
#include "sparsekern/nm_linear.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

NmStructure Parse(const char* op, const py::array& structure) {
  CheckArray(op, "structure", structure, 1, 1);
  NmStructure parsed;
  Raise(ParseNmStructure(structure.data(), static_cast<size_t>(structure.nbytes()), op, &parsed));
  return parsed;
}

void Validate(const py::array& values, const py::array& structure, const std::string& dtype_name) {
  const DType dtype = DTypeFromName("nm_validate", dtype_name);
  CheckArray("nm_validate", "values", values, 1, static_cast<ssize_t>(SizeOf(dtype)));
  CheckArray("nm_validate", "structure", structure, 1, 1);
  Status status;
  {
    const py::gil_scoped_release release;
    status = ValidateNm(structure.data(), static_cast<size_t>(structure.nbytes()), values.data(),
                        values.size(), dtype);
  }
  Raise(status);
}

py::tuple Pack(const py::array& dense, const std::string& dtype_name, int n, int m,
               const std::optional<py::array>& mask) {
  const DType dtype = DTypeFromName("nm_pack", dtype_name);
  CheckArray("nm_pack", "dense", dense, 2, static_cast<ssize_t>(SizeOf(dtype)));
  const uint8_t* mask_data = MaskData("nm_pack", dense, mask);
  NmPacker packer;
  Status status;
  {
    const py::gil_scoped_release release;
    status = packer.Plan(dense.data(), dtype, dense.shape(0), dense.shape(1), n, m, mask_data);
  }
  Raise(status);
  py::array values = NewArray(NumpyType(dtype), packer.value_count());
  py::array structure =
      NewArray(py::dtype::of<uint8_t>(), static_cast<int64_t>(packer.structure_bytes()));
  void* values_data = values.mutable_data();
  void* structure_data = structure.mutable_data();
  {
    const py::gil_scoped_release release;
    packer.Fill(values_data, structure_data);
  }
  return py::make_tuple(values, structure);
}

py::array Unpack(const py::array& values, const py::array& structure,
                 const std::string& dtype_name) {
  Validate(values, structure, dtype_name);
  const DType dtype = DTypeFromName("nm_unpack", dtype_name);
  const NmStructure parsed = Parse("nm_unpack", structure);
  py::array dense = NewArray(NumpyType(dtype), parsed.rows, parsed.cols);
  void* dense_data = dense.mutable_data();
  const py::gil_scoped_release release;
  UnpackNm(parsed, values.data(), dtype, dense_data);
  return dense;
}

py::array Mask(const py::array& structure) {
  const NmStructure parsed = Parse("nm_mask_of", structure);
  py::array mask = NewArray(py::dtype::of<bool>(), parsed.rows, parsed.cols);
  auto* mask_data = static_cast<uint8_t*>(mask.mutable_data());
  Status status;
  {
    const py::gil_scoped_release release;
    // A field that names a wrong column is no danger here, but would give a wrong answer.
    const std::vector<uint8_t> zeros(static_cast<size_t>(parsed.value_count()), 0);
    status = ValidateNm(structure.data(), static_cast<size_t>(structure.nbytes()), zeros.data(),
                        parsed.value_count(), DType::kI8);
    if (status.ok()) NmMask(parsed, mask_data);
  }
  Raise(status);
  return mask;
}

py::dict Info(const py::array& structure) {
  const NmStructure s = Parse("nm_info", structure);
  py::dict info;
  info["version"] = 1;
  info["rows"] = s.rows;
  info["cols"] = s.cols;
  info["n"] = s.n;
  info["m"] = s.m;
  info["window"] = s.window;
  info["field_bits"] = s.field_bits;
  info["steps"] = s.steps;
  info["words"] = s.words;
  info["panels"] = s.panels;
  return info;
}

std::string Kernel(const py::array& structure, const std::string& dtype_name, int64_t x_rows) {
  NmMatrix w;
  w.structure = Parse("nm_kernel", structure);
  w.dtype = DTypeFromName("nm_kernel", dtype_name);
  IsaMask mask = 0;
  Raise(ActiveIsa(&mask));
  return NmLinearKernelName(w, x_rows, mask);
}

}  // namespace

void RegisterNm(py::module_& m) {
  m.def("nm_pack", &Pack, py::arg("dense"), py::arg("dtype"), py::arg("n"), py::arg("m"),
        py::arg("mask") = py::none(),
        "Pack dense [rows, cols] (float32, int8, or uint16 holding bfloat16/float16 bits).\n\n"
        "n of every m consecutive columns are kept; m: 2, 4, 8, 16 or 32; 1 <= n < m.\n"
        "mask: bool [rows, cols], the kept weights; None keeps what differs from zero.\n"
        "Returns (values, structure), the arrays of docs/formats.md. ValueError, also for a group\n"
        "that keeps more than n; TypeError.");
  m.def("nm_unpack", &Unpack, py::arg("values"), py::arg("structure"), py::arg("dtype"),
        "The dense [rows, cols] array; validates first.");
  m.def("nm_mask_of", &Mask, py::arg("structure"), "bool [rows, cols]: which weights are kept.");
  m.def("nm_validate", &Validate, py::arg("values"), py::arg("structure"), py::arg("dtype"),
        "Check everything docs/formats.md demands, as of untrusted input; ValueError says what is "
        "wrong.");
  m.def("nm_info", &Info, py::arg("structure"),
        "The header's fields and the sizes that follow from them.");
  m.def("nm_kernel", &Kernel, py::arg("structure"), py::arg("dtype"), py::arg("x_rows"),
        "Name of the kernel that selection picks for x_rows rows of x under the active ISA mask.");
}

}  // namespace sparsekern::bind
