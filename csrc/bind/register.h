// SPDX-License-Identifier: Apache-2.0
// One function for each part of sparsekern._core; called once, from module.cc.
#pragma once

#include <pybind11/pybind11.h>

#include "sparsekern/status.h"

namespace sparsekern::bind {

void RegisterIsa(pybind11::module_& m);
void RegisterCsr(pybind11::module_& m);
void RegisterNm(pybind11::module_& m);
void RegisterNmMask(pybind11::module_& m);
void RegisterGqs(pybind11::module_& m);

// Raises the Python exception that `status` stands for; returns when it is ok.
void Raise(const Status& status);

}  // namespace sparsekern::bind
