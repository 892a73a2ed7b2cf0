// SPDX-License-Identifier: Apache-2.0
// The table of an ISA file over its vector type.
#pragma once

#include "ops/nm_mask/generic.h"
#include "ops/nm_mask/generic_pack.h"

namespace sparsekern {

#define SPARSEKERN_NM_MASK_ROW(V, D) \
  {MaskRun<V, D, 2>, MaskRun<V, D, 4>, MaskRun<V, D, 8>, MaskRun<V, D, 16>, MaskRun<V, D, 32>}

// The kernel set of an ISA file.
template <typename V>
static constexpr NmMaskKernels MakeNmMaskKernels(const char* name, IsaMask isa) {
  return NmMaskKernels{
      name,
      isa,
      {SPARSEKERN_NM_MASK_ROW(V, DType::kF32), SPARSEKERN_NM_MASK_ROW(V, DType::kBF16),
       SPARSEKERN_NM_MASK_ROW(V, DType::kF16)},
      {MaskColumns<V, 2>, MaskColumns<V, 4>, MaskColumns<V, 8>, MaskColumns<V, 16>,
       MaskColumns<V, 32>},
      PackPanels<V>};
}

#undef SPARSEKERN_NM_MASK_ROW

}  // namespace sparsekern
