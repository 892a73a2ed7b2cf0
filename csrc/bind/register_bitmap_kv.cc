// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include <string>

#include "bind/register.h"
#include "sparsekern/bitmap_attention.h"
#include "sparsekern/bitmap_kv_append.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

using NameFn = std::string (*)(DType, IsaMask);

template <NameFn NameOf>
std::string Kernel(const std::string& dtype_name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (dtype_name != Name(dtype)) continue;
    IsaMask mask = 0;
    Raise(ActiveIsa(&mask));
    return NameOf(dtype, mask);
  }
  throw py::value_error("dtype must be 'float32', 'bfloat16' or 'float16', got '" + dtype_name +
                        "'");
}

}  // namespace

void RegisterBitmapKv(py::module_& m) {
  m.def("bitmap_kv_append_kernel", &Kernel<BitmapKvAppendKernelName>, py::arg("dtype"),
        "Name of the kernel that selection picks under the active ISA mask.");
  m.def("bitmap_attention_kernel", &Kernel<BitmapAttentionKernelName>, py::arg("dtype"),
        "Name of the kernel that selection picks under the active ISA mask.");
}

}  // namespace sparsekern::bind
