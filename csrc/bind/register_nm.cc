// SPDX-License-Identifier: Apache-2.0
// The nm format at NumPy level: pack, unpack, inspect, validate.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bind/packing.h"
#include "sparsekern/isa.h"
#include "sparsekern/nm_linear.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

NmStructure Parse(const char* op, const py::array& structure) {
  return ParseArray<NmStructure>(op, structure, &ParseNmStructure);
}

void Validate(const py::array& values, const py::array& structure, const std::string& dtype) {
  ValidateArrays("nm_validate", values, structure, dtype, &ValidateNm);
}

py::tuple Pack(const py::array& dense, const std::string& dtype, int n, int m,
               const std::optional<py::array>& mask) {
  return PackArrays<NmPacker>(
      "nm_pack", dense, dtype, mask,
      [&](NmPacker& packer, const void* data, DType type, int64_t rows, int64_t cols,
          const uint8_t* kept) { return packer.Plan(data, type, rows, cols, n, m, kept); });
}

py::array Unpack(const py::array& values, const py::array& structure, const std::string& dtype) {
  Validate(values, structure, dtype);
  return UnpackArrays(Parse("nm_unpack", structure), values, DTypeFromName("nm_unpack", dtype),
                      &UnpackNm);
}

py::array Mask(const py::array& structure) {
  const NmStructure parsed = Parse("nm_mask_of", structure);
  ValidatePattern(structure, parsed.value_count(), &ValidateNm);
  return MaskArray(parsed, &NmMask);
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
