// SPDX-License-Identifier: Apache-2.0
// The gqs format at NumPy level: pack, unpack, inspect, validate.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bind/packing.h"
#include "sparsekern/gqs_linear.h"
#include "sparsekern/isa.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

GqsStructure Parse(const char* op, const py::array& structure) {
  return ParseArray<GqsStructure>(op, structure, &ParseGqsStructure);
}

GqsScale ScaleFromName(const char* op, const std::string& name) {
  if (name == "float32") return GqsScale::kF32;
  if (name == "bfloat16") return GqsScale::kBF16;
  if (name == "float16") return GqsScale::kF16;
  if (name == "uint8") return GqsScale::kU8;
  Raise(Status::InvalidType(std::string(op) +
                            ": scale must be float32, bfloat16, float16 or uint8, got " + name));
  return GqsScale::kF32;
}

void Validate(const py::array& values, const py::array& structure, const py::array& scale,
              const std::string& scale_dtype) {
  constexpr const char* kOp = "gqs_validate";
  const GqsScale kind = ScaleFromName(kOp, scale_dtype);
  CheckArray(kOp, "values", values, 1, 1);
  CheckArray(kOp, "structure", structure, 1, 1);
  CheckArray(kOp, "scale", scale, 1, static_cast<ssize_t>(SizeOf(kind)));
  Status status;
  {
    const py::gil_scoped_release release;
    status = ValidateGqs(structure.data(), static_cast<size_t>(structure.nbytes()), values.data(),
                         values.size(), scale.data(), scale.size(), kind);
  }
  Raise(status);
}

py::tuple Pack(const py::array& codes, const py::array& mask, int bits, int group, bool zeros,
               const std::optional<py::array>& row_scale) {
  constexpr const char* kOp = "gqs_pack";
  CheckArray(kOp, "codes", codes, 2, 1);
  CheckArray(kOp, "mask", mask, 2, 1);
  GqsSource source;
  source.rows = codes.shape(0);
  source.cols = codes.shape(1);
  source.group = group;
  source.bits = bits;
  source.zeros = zeros;
  if (group > 0 &&
      (mask.shape(0) != source.rows || mask.shape(1) != (source.cols + group - 1) / group)) {
    Raise(Status::InvalidValue("gqs_pack: mask must be [rows, ceil(cols / group)]"));
  }
  if (row_scale.has_value()) {
    CheckArray(kOp, "row_scale", *row_scale, 1, 4);
    if (row_scale->size() != source.rows) {
      Raise(Status::InvalidValue("gqs_pack: row_scale must have " + std::to_string(source.rows) +
                                 " elements, got " + std::to_string(row_scale->size())));
    }
    source.row_scale = static_cast<const float*>(row_scale->data());
  }
  source.codes = static_cast<const int8_t*>(codes.data());
  source.mask = static_cast<const uint8_t*>(mask.data());
  GqsPacker packer;
  Status status;
  {
    const py::gil_scoped_release release;
    status = packer.Plan(source);
  }
  Raise(status);
  py::array values = NewArray(py::dtype::of<int8_t>(), packer.value_bytes());
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

py::array Unpack(const py::array& values, const py::array& structure) {
  const GqsStructure s = Parse("gqs_unpack", structure);
  CheckArray("gqs_unpack", "values", values, 1, 1);
  Status status;
  const std::vector<float> ones(static_cast<size_t>(s.scale_count()), 1.0f);
  const std::vector<uint8_t> bytes(static_cast<size_t>(s.scale_count()), 1);
  {
    const py::gil_scoped_release release;
    status = ValidateGqs(structure.data(), static_cast<size_t>(structure.nbytes()), values.data(),
                         values.size(),
                         s.row_scale ? static_cast<const void*>(bytes.data()) : ones.data(),
                         s.scale_count(), s.row_scale ? GqsScale::kU8 : GqsScale::kF32);
  }
  Raise(status);
  py::array codes = NewArray(py::dtype::of<int8_t>(), s.rows, s.cols);
  auto* data = static_cast<int8_t*>(codes.mutable_data());
  const py::gil_scoped_release release;
  UnpackGqs(s, values.data(), data);
  return codes;
}

py::array Mask(const py::array& structure) {
  const GqsStructure s = Parse("gqs_mask_of", structure);
  int64_t bits = 0;
  for (int64_t i = 0; i < 2 * s.rows * s.words; ++i) bits += __builtin_popcount(s.mask[i]);
  const int64_t beyond = s.words * 16 - s.row_groups;
  for (int64_t r = 0; r < s.rows; ++r) {
    uint16_t last;
    std::memcpy(&last, s.mask + 2 * ((r + 1) * s.words - 1), 2);
    if (beyond > 0 && last >> (16 - beyond) != 0) bits = -1;
    if (bits < 0) break;
  }
  if (bits != s.groups) {
    Raise(Status::InvalidValue("gqs_mask_of: structure must keep the groups that it counts"));
  }
  py::array result = NewArray(py::dtype::of<bool>(), s.rows, s.row_groups);
  auto* data = static_cast<uint8_t*>(result.mutable_data());
  const py::gil_scoped_release release;
  GqsMask(s, data);
  return result;
}

py::object RowScale(const py::array& structure) {
  const GqsStructure s = Parse("gqs_row_scale", structure);
  if (!s.row_scale) return py::none();
  py::array result = NewArray(py::dtype::of<float>(), s.rows);
  std::memcpy(result.mutable_data(), s.row_scale_bytes, static_cast<size_t>(4 * s.rows));
  return result;
}

py::dict Info(const py::array& structure) {
  const GqsStructure s = Parse("gqs_info", structure);
  py::dict info;
  info["version"] = 1;
  info["rows"] = s.rows;
  info["cols"] = s.cols;
  info["group"] = s.group;
  info["bits"] = s.bits;
  info["zeros"] = s.zeros;
  info["row_scale"] = s.row_scale;
  info["groups"] = s.groups;
  info["row_groups"] = s.row_groups;
  info["task_groups"] = s.task_groups;
  info["tasks"] = s.tasks;
  return info;
}

std::string Kernel(const py::array& structure, int64_t x_rows, bool int8_activations) {
  GqsMatrix w;
  w.structure = Parse("gqs_kernel", structure);
  IsaMask mask = 0;
  Raise(ActiveIsa(&mask));
  return GqsLinearKernelName(w, x_rows, mask, int8_activations);
}

}  // namespace

void RegisterGqs(py::module_& m) {
  m.def("gqs_pack", &Pack, py::arg("codes"), py::arg("mask"), py::arg("bits"), py::arg("group"),
        py::arg("zeros"), py::arg("row_scale") = py::none(),
        "Pack codes int8 [rows, cols], each in [-2^(bits-1), 2^(bits-1)).\n\n"
        "mask: bool [rows, ceil(cols / group)], the kept groups. zeros: whether they have\n"
        "zero-points. row_scale: float32 [rows], the factors of 8-bit scales; None for others.\n"
        "Returns (values, structure), the arrays of docs/formats.md. ValueError, TypeError.");
  m.def("gqs_unpack", &Unpack, py::arg("values"), py::arg("structure"),
        "The codes int8 [rows, cols], 0 where pruned; validates first.");
  m.def("gqs_mask_of", &Mask, py::arg("structure"),
        "bool [rows, ceil(cols / group)]: which groups are kept.");
  m.def("gqs_row_scale", &RowScale, py::arg("structure"),
        "float32 [rows], the factors of 8-bit scales, or None.");
  m.def("gqs_validate", &Validate, py::arg("values"), py::arg("structure"), py::arg("scale"),
        py::arg("scale_dtype"),
        "Check everything docs/formats.md demands, as of untrusted input; ValueError says what is "
        "wrong.");
  m.def("gqs_info", &Info, py::arg("structure"),
        "The header's fields and the sizes that follow from them.");
  m.def("gqs_kernel", &Kernel, py::arg("structure"), py::arg("x_rows"),
        py::arg("int8_activations") = false,
        "Name of the kernel that selection picks for x_rows rows of x under the active ISA mask.");
}

}  // namespace sparsekern::bind
