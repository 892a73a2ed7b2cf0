// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace sparsekern {

// "major.minor.patch" of the library that is loaded.
const char* Version();

// Compiler and its version with which the library was built, for bug reports.
const char* Compiler();

}  // namespace sparsekern
