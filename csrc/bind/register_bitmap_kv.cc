// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include <string>

#include "bind/numpy_arrays.h"
#include "bind/register.h"
#include "sparsekern/bitmap_attention.h"
#include "sparsekern/bitmap_kv_append.h"

namespace py = pybind11;

namespace sparsekern::bind {
namespace {

std::string Kernel(const char* op, const std::string& dtype_name,
                   std::string (*name_of)(DType, IsaMask)) {
  const DType dtype = DTypeFromName(op, dtype_name);
  if (dtype == DType::kI8) {
    Raise(Status::InvalidType(std::string(op) +
                              ": dtype must be float32, bfloat16 or float16, got int8"));
  }
  IsaMask mask = 0;
  Raise(ActiveIsa(&mask));
  return name_of(dtype, mask);
}

std::string AppendKernel(const std::string& dtype) {
  return Kernel("bitmap_kv_append_kernel", dtype, BitmapKvAppendKernelName);
}

std::string AttentionKernel(const std::string& dtype) {
  return Kernel("bitmap_attention_kernel", dtype, BitmapAttentionKernelName);
}

}  // namespace

void RegisterBitmapKv(py::module_& m) {
  m.def("bitmap_kv_append_kernel", &AppendKernel, py::arg("dtype"),
        "Name of the kernel that selection picks under the active ISA mask.");
  m.def("bitmap_attention_kernel", &AttentionKernel, py::arg("dtype"),
        "Name of the kernel that selection picks under the active ISA mask.");
}

}  // namespace sparsekern::bind
