// SPDX-License-Identifier: Apache-2.0
// The bitmap format at NumPy level: pack, unpack, inspect, validate.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bind/packing.h"
#include "sparsekern/bitmap_linear.h"
#include "sparsekern/isa.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

BitmapStructure Parse(const char* op, const py::array& structure) {
  return ParseArray<BitmapStructure>(op, structure, &ParseBitmapStructure);
}

void Validate(const py::array& values, const py::array& structure, const std::string& dtype) {
  ValidateArrays("bitmap_validate", values, structure, dtype, &ValidateBitmap);
}

py::tuple Pack(const py::array& dense, const std::string& dtype,
               const std::optional<py::array>& mask) {
  return PackArrays<BitmapPacker>(
      "bitmap_pack", dense, dtype, mask,
      [](BitmapPacker& packer, const void* data, DType type, int64_t rows, int64_t cols,
         const uint8_t* kept) { return packer.Plan(data, type, rows, cols, kept); });
}

py::array Unpack(const py::array& values, const py::array& structure, const std::string& dtype) {
  Validate(values, structure, dtype);
  return UnpackArrays(Parse("bitmap_unpack", structure), values,
                      DTypeFromName("bitmap_unpack", dtype), &UnpackBitmap);
}

py::array Mask(const py::array& structure) {
  const BitmapStructure parsed = Parse("bitmap_mask_of", structure);
  // No value is looked at: their number alone must be right.
  Raise(ValidateBitmap(structure.data(), static_cast<size_t>(structure.nbytes()), nullptr,
                       parsed.value_count(), DType::kI8));
  return MaskArray(parsed, &BitmapMask);
}

py::dict Info(const py::array& structure) {
  const BitmapStructure s = Parse("bitmap_info", structure);
  py::dict info;
  info["version"] = 1;
  info["rows"] = s.rows;
  info["cols"] = s.cols;
  info["kept"] = s.kept;
  info["panels"] = s.panels;
  info["words"] = s.words;
  return info;
}

std::string Kernel(const py::array& structure, const std::string& dtype_name, int64_t x_rows) {
  BitmapMatrix w;
  w.structure = Parse("bitmap_kernel", structure);
  w.dtype = DTypeFromName("bitmap_kernel", dtype_name);
  IsaMask mask = 0;
  Raise(ActiveIsa(&mask));
  return BitmapLinearKernelName(w, x_rows, mask);
}

}  // namespace

void RegisterBitmap(py::module_& m) {
  m.def("bitmap_pack", &Pack, py::arg("dense"), py::arg("dtype"), py::arg("mask") = py::none(),
        "Pack dense [rows, cols] (float32, int8, or uint16 holding bfloat16/float16 bits).\n\n"
        "mask: bool [rows, cols], the kept weights; None keeps what differs from zero.\n"
        "Returns (values, structure), the arrays of docs/formats.md. ValueError, TypeError.");
  m.def("bitmap_unpack", &Unpack, py::arg("values"), py::arg("structure"), py::arg("dtype"),
        "The dense [rows, cols] array; validates first.");
  m.def("bitmap_mask_of", &Mask, py::arg("structure"),
        "bool [rows, cols]: which weights are kept.");
  m.def("bitmap_validate", &Validate, py::arg("values"), py::arg("structure"), py::arg("dtype"),
        "Check everything docs/formats.md demands, as of untrusted input; ValueError says what is "
        "wrong.");
  m.def("bitmap_info", &Info, py::arg("structure"),
        "The header's fields and the sizes that follow from them.");
  m.def("bitmap_kernel", &Kernel, py::arg("structure"), py::arg("dtype"), py::arg("x_rows"),
        "Name of the kernel that selection picks for x_rows rows of x under the active ISA mask.");
}

}  // namespace sparsekern::bind
