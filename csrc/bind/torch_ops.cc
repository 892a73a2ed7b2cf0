// SPDX-License-Identifier: Apache-2.0
// The operators torch.ops.sparsekern.*, registered on libtorch's stable ABI: this library links C
// functions only and works with every torch from 2.10 on. Schemas of an operator with tensors live
// with it, in torch_<op>.cc, as a fragment of the same namespace.
#include <torch/csrc/stable/library.h>

#include <string>

#include "bind/torch_errors.h"
#include "sparsekern/isa.h"
#include "sparsekern/version.h"

namespace sparsekern::bind {
namespace {

// The active instruction sets, joined by commas: "scalar,avx2". Python compares it with _core's
// answer to know that both use one copy of libsparsekern.
std::string ActiveIsaList() {
  IsaMask mask = 0;
  ThrowIfError(ActiveIsa(&mask));
  std::string list;
  for (const std::string& name : IsaNames(mask)) list += (list.empty() ? "" : ",") + name;
  return list;
}

std::string LibraryVersion() { return Version(); }

}  // namespace
}  // namespace sparsekern::bind

STABLE_TORCH_LIBRARY(sparsekern, m) {
  m.def("active_isa() -> str");
  m.def("version() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CompositeExplicitAutograd, m) {
  m.impl("active_isa", TORCH_BOX(&sparsekern::bind::ActiveIsaList));
  m.impl("version", TORCH_BOX(&sparsekern::bind::LibraryVersion));
}
