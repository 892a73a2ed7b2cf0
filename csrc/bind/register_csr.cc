// SPDX-License-Identifier: Apache-2.0
// The csr format at NumPy level: pack, unpack, inspect, validate, transpose.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bind/packing.h"
#include "sparsekern/csr.h"
#include "sparsekern/csr_spmm.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

CsrStructure Parse(const char* op, const py::array& structure) {
  return ParseArray<CsrStructure>(op, structure, &ParseCsrStructure);
}

CsrStructure Validated(const char* op, const py::array& structure) {
  const CsrStructure parsed = Parse(op, structure);
  ValidatePattern(structure, parsed.value_count(), &ValidateCsr);
  return parsed;
}

void Validate(const py::array& values, const py::array& structure, const std::string& dtype) {
  ValidateArrays("csr_validate", values, structure, dtype, &ValidateCsr);
}

py::tuple Pack(const py::array& dense, const std::string& dtype,
               const std::optional<py::array>& mask, int block_rows) {
  return PackArrays<CsrPacker>("csr_pack", dense, dtype, mask,
                               [&](CsrPacker& packer, const auto&... arguments) {
                                 return packer.Plan(arguments..., block_rows);
                               });
}

py::array Unpack(const py::array& values, const py::array& structure, const std::string& dtype) {
  Validate(values, structure, dtype);
  return UnpackArrays(Parse("csr_unpack", structure), values, DTypeFromName("csr_unpack", dtype),
                      &UnpackCsr);
}

py::array Mask(const py::array& structure) {
  return MaskArray(Validated("csr_mask", structure), &CsrMask);
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
