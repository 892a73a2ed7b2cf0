// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include <string>

#include "bind/register.h"
#include "sparsekern/nm_mask.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

std::string Kernel(int64_t m, const std::string& dtype_name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (dtype_name != Name(dtype)) continue;
    IsaMask mask = 0;
    Raise(ActiveIsa(&mask));
    return NmMaskKernelName(m, dtype, mask);
  }
  throw py::value_error("nm_mask_kernel: dtype must be 'float32', 'bfloat16' or 'float16', got '" +
                        dtype_name + "'");
}

}  // namespace

void RegisterNmMask(py::module_& m) {
  m.def("nm_mask_kernel", &Kernel, py::arg("m"), py::arg("dtype"),
        "Name of the kernel that selection picks for groups of m under the active ISA mask.");
}

}  // namespace sparsekern::bind
