// SPDX-License-Identifier: Apache-2.0
// Build information and the instruction-set mask.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind/register.h"
#include "sparsekern/isa.h"
#include "sparsekern/version.h"

namespace py = pybind11;

namespace sparsekern::bind {

void Raise(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk: return;
    case StatusCode::kInvalidType: throw py::type_error(status.message());
    case StatusCode::kInvalidValue: throw py::value_error(status.message());
    case StatusCode::kUnimplemented:
      PyErr_SetString(PyExc_NotImplementedError, status.message().c_str());
      throw py::error_already_set();
    case StatusCode::kOutOfMemory:
      PyErr_SetString(PyExc_MemoryError, status.message().c_str());
      throw py::error_already_set();
    case StatusCode::kInternal: break;
  }
  PyErr_SetString(PyExc_RuntimeError, status.message().c_str());
  throw py::error_already_set();
}

namespace {

std::vector<std::string> ActiveIsaNames() {
  IsaMask mask = 0;
  Raise(ActiveIsa(&mask));
  return IsaNames(mask);
}

void SetIsa(const py::object& name) {
  IsaMask mask = 0;
  if (!name.is_none()) Raise(IsaFromName(name.cast<std::string>(), &mask));
  Raise(SetActiveIsa(mask));
}

}  // namespace

void RegisterIsa(py::module_& m) {
  m.attr("__version__") = Version();
  m.attr("compiler") = Compiler();
  m.def(
      "detected_isa", [] { return IsaNames(DetectedIsa()); },
      "Names of the instruction sets that this processor and its operating system support.");
  m.def("active_isa", &ActiveIsaNames,
        "Names of the instruction sets that kernel selection may use.\n\n"
        "Raises ValueError when SPARSEKERN_ISA names none that this processor has.");
  m.def("set_isa", &SetIsa, py::arg("name"),
        "Restrict kernel selection, for the whole process, to the instruction set `name` and what "
        "it\n"
        "implies; None goes back to SPARSEKERN_ISA or, where that is unset, to all detected.\n\n"
        "Raises ValueError when the name is unknown or this processor lacks the set.");
}

}  // namespace sparsekern::bind
