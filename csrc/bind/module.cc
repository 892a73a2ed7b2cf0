// SPDX-License-Identifier: Apache-2.0
// The extension module sparsekern._core. It only registers: each part of the interface lives in a
// register_<part>.cc of its own.
#include <pybind11/pybind11.h>

#include "bind/register.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "NumPy-level access to sparsekern's core: packing, inspection, instruction sets.";
  sparsekern::bind::RegisterIsa(m);
  sparsekern::bind::RegisterCsr(m);
  sparsekern::bind::RegisterNm(m);
  sparsekern::bind::RegisterNmMask(m);
  sparsekern::bind::RegisterGqs(m);
}
