// SPDX-License-Identifier: Apache-2.0
// The csr format at NumPy level: pack, unpack, inspect, validate, transpose.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bind/numpy_arrays.h"
#include "bind/register.h"
#include "sparsekern/csr.h"
#include "sparsekern/csr_spmm.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

CsrStructure Parse(const char* op, const py::array& structure) {
  CheckArray(op, "structure", structure, 1, 1);
  CsrStructure parsed;
  Raise(ParseCsrStructure(structure.data(), static_cast<size_t>(structure.nbytes()), op, &parsed));
  return parsed;
}

void Validate(const py::array& values, const py::array& structure, const std::string& dtype_name) {
  const DType dtype = DTypeFromName("csr_validate", dtype_name);
  CheckArray("csr_validate", "values", values, 1, static_cast<ssize_t>(SizeOf(dtype)));
  CheckArray("csr_validate", "structure", structure, 1, 1);
  Status status;
  {
    const py::gil_scoped_release release;
    status = ValidateCsr(structure.data(), static_cast<size_t>(structure.nbytes()), values.data(),
                         values.size(), dtype);
  }
  Raise(status);
}

// What walks the entries must not meet an index that was never checked.
CsrStructure Validated(const char* op, const py::array& structure) {
  const CsrStructure parsed = Parse(op, structure);
  const std::vector<uint8_t> zeros(static_cast<size_t>(parsed.value_count()), 0);
  Raise(ValidateCsr(structure.data(), static_cast<size_t>(structure.nbytes()), zeros.data(),
                    parsed.value_count(), DType::kI8));
  return parsed;
}

py::tuple Pack(const py::array& dense, const std::string& dtype_name,
               const std::optional<py::array>& mask, int block_rows) {
  const DType dtype = DTypeFromName("csr_pack", dtype_name);
  CheckArray("csr_pack", "dense", dense, 2, static_cast<ssize_t>(SizeOf(dtype)));
  const uint8_t* mask_data = MaskData("csr_pack", dense, mask);
  CsrPacker packer;
  Status status;
  {
    const py::gil_scoped_release release;
    status =
        packer.Plan(dense.data(), dtype, dense.shape(0), dense.shape(1), mask_data, block_rows);
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
  const DType dtype = DTypeFromName("csr_unpack", dtype_name);
  const CsrStructure parsed = Parse("csr_unpack", structure);
  py::array dense = NewArray(NumpyType(dtype), parsed.rows, parsed.cols);
  void* dense_data = dense.mutable_data();
  const py::gil_scoped_release release;
  UnpackCsr(parsed, values.data(), dtype, dense_data);
  return dense;
}

py::array Mask(const py::array& structure) {
  const CsrStructure parsed = Validated("csr_mask", structure);
  py::array mask = NewArray(py::dtype::of<bool>(), parsed.rows, parsed.cols);
  CsrMask(parsed, static_cast<uint8_t*>(mask.mutable_data()));
  return mask;
}

py::dict Info(const py::array& structure) {
  const CsrStructure s = Parse("csr_info", structure);
  py::dict info;
  info["version"] = 1;
  info["rows"] = s.rows;
  info["cols"] = s.cols;
  info["block_rows"] = s.block_rows;
  info["panel_groups"] = s.panel_groups;
  info["steps"] = s.steps;
  info["kept"] = s.kept;
  info["tiles"] = s.panels * s.blocks;
  return info;
}

py::tuple Transpose(const py::array& structure) {
  const CsrStructure parsed = Validated("csr_transpose", structure);
  std::vector<uint8_t> transposed;
  std::vector<int64_t> permutation;
  Status status;
  {
    const py::gil_scoped_release release;
    status = TransposeCsr(parsed, &transposed, &permutation);
  }
  Raise(status);
  py::array structure_t(py::dtype::of<uint8_t>(),
                        std::vector<ssize_t>{static_cast<ssize_t>(transposed.size())},
                        transposed.data());
  py::array permutation_t(py::dtype::of<int64_t>(),
                          std::vector<ssize_t>{static_cast<ssize_t>(permutation.size())},
                          permutation.data());
  return py::make_tuple(structure_t, permutation_t);
}

std::string Kernel(const py::array& structure, const std::string& dtype_name, int64_t x_rows,
                   bool conv, bool int8_activations) {
  CsrMatrix w;
  w.structure = Parse("csr_kernel", structure);
  w.dtype = DTypeFromName("csr_kernel", dtype_name);
  IsaMask mask = 0;
  Raise(ActiveIsa(&mask));
  return conv ? CsrConv2dKernelName(w, mask, int8_activations)
              : CsrLinearKernelName(w, x_rows, mask, int8_activations);
}

}  // namespace

void RegisterCsr(py::module_& m) {
  m.def("csr_pack", &Pack, py::arg("dense"), py::arg("dtype"), py::arg("mask") = py::none(),
        py::arg("block_rows") = 1,
        "Pack dense [rows, cols] (float32, int8, or uint16 holding bfloat16/float16 bits).\n\n"
        "mask: bool [rows, cols], the kept weights; None keeps what differs from zero.\n"
        "Returns (values, structure), the arrays of docs/formats.md. ValueError, TypeError.");
  m.def("csr_unpack", &Unpack, py::arg("values"), py::arg("structure"), py::arg("dtype"),
        "The dense [rows, cols] array; validates first.");
  m.def("csr_mask", &Mask, py::arg("structure"), "bool [rows, cols]: which weights are kept.");
  m.def("csr_validate", &Validate, py::arg("values"), py::arg("structure"), py::arg("dtype"),
        "Check everything docs/formats.md demands, as of untrusted input; ValueError says what is "
        "wrong.");
  m.def("csr_info", &Info, py::arg("structure"), "The header's fields and the number of tiles.");
  m.def("csr_transpose", &Transpose, py::arg("structure"),
        "(structure of the transposed pattern, int64 permutation): entry i of the transposed "
        "values is\n"
        "values[permutation[i]], or padding where that is -1.");
  m.def("csr_kernel", &Kernel, py::arg("structure"), py::arg("dtype"), py::arg("x_rows"),
        py::arg("conv") = false, py::arg("int8_activations") = false,
        "Name of the kernel that selection picks for x_rows rows of x under the active ISA mask.");
}

}  // namespace sparsekern::bind
