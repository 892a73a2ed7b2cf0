// SPDX-License-Identifier: Apache-2.0
// csr kernels for NEON, the baseline of 64-bit ARM.
#include "base/simd/vector_arm_neon.h"
#include "ops/csr_spmm/generic.h"

namespace sparsekern {
namespace {

struct CsrNeon : Neon {
  // Four scalar loads: a table look-up reaches 64 bytes, the block has 512. The four indices come
  // in one load, and the bit field that extracts one also keeps an index of a corrupt structure
  // inside.
  struct Columns {
    const float* x;
    explicit Columns(const float* block) : x(block) {}
    Reg Look(const uint8_t* index) const {
      constexpr uint32_t kIn = kCsrBlockCols - 1;
      uint32_t four;
      std::memcpy(&four, index, sizeof four);
      Reg v = vld1q_dup_f32(x + (four & kIn));
      v = vld1q_lane_f32(x + (four >> 8 & kIn), v, 1);
      v = vld1q_lane_f32(x + (four >> 16 & kIn), v, 2);
      return vld1q_lane_f32(x + (four >> 24 & kIn), v, 3);
    }
  };
};

}  // namespace

extern const CsrKernels kCsrKernels_arm_neon = MakeCsrKernels<CsrNeon>(kTileKernels_arm_neon, 2);

}  // namespace sparsekern
