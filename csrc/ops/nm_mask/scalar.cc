// SPDX-License-Identifier: Apache-2.0
// nm_mask in plain C++, by counting in each group: shares no loop with the vector kernels, which
// are tested against it.
#include <cstring>

#include "ops/nm_mask/kernels.h"
#include "ops/nm_mask/sort_key.h"

namespace sparsekern {
namespace {

template <DType D>
int32_t KeyOf(const uint8_t* p, bool magnitude) {
  uint32_t bits = 0;
  if constexpr (D == DType::kF32) {
    std::memcpy(&bits, p, 4);
  } else {
    uint16_t half;
    std::memcpy(&half, p, 2);
    bits = static_cast<uint32_t>(half) << 16;
  }
  return NmSortKey(bits, D == DType::kF16, magnitude);
}

template <DType D, int M>
void MaskRun(const void* score, int64_t count, int n, bool magnitude, uint8_t* mask) {
  const auto* from = static_cast<const uint8_t*>(score);
  int32_t keys[M];
  for (int64_t begin = 0; begin < count; begin += M) {
    const int size = count - begin < M ? static_cast<int>(count - begin) : M;
    for (int i = 0; i < size; ++i) {
      keys[i] = KeyOf<D>(from + (begin + i) * static_cast<int64_t>(SizeOf(D)), magnitude);
    }
    for (int i = 0; i < size; ++i) {
      int beaten_by = 0;
      for (int j = 0; j < size; ++j) beaten_by += NmGoesBefore(keys[j], j, keys[i], i);
      mask[begin + i] = beaten_by < n;
    }
  }
}

template <DType D>
constexpr void Fill(NmMaskFn* row) {
  row[0] = MaskRun<D, 2>;
  row[1] = MaskRun<D, 4>;
  row[2] = MaskRun<D, 8>;
  row[3] = MaskRun<D, 16>;
  row[4] = MaskRun<D, 32>;
}

constexpr NmMaskKernels Make() {
  NmMaskKernels kernels{"scalar", kScalar, {}};
  Fill<DType::kF32>(kernels.run[0]);
  Fill<DType::kBF16>(kernels.run[1]);
  Fill<DType::kF16>(kernels.run[2]);
  return kernels;
}

}  // namespace

extern const NmMaskKernels kNmMaskKernels_scalar = Make();

}  // namespace sparsekern
