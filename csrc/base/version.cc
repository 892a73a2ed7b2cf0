// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/version.h"

// The number itself lives in pyproject.toml only; the build passes it.
#if !defined(SPARSEKERN_VERSION)
#error "SPARSEKERN_VERSION must be defined by the build"
#endif

namespace sparsekern {

const char* Version() { return SPARSEKERN_VERSION; }

const char* Compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace sparsekern
