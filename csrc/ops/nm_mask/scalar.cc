// SPDX-License-Identifier: Apache-2.0
// nm_mask and nm_pack in plain C++, by counting in each group: shares no loop with the vector
// kernels, which are tested against it.
#include <cstring>

#include "ops/nm_mask/kernels.h"
#include "ops/nm_mask/sort_key.h"

namespace sparsekern {
namespace {

uint32_t BitsAt(const void* p, int64_t at, DType dtype) {
  if (dtype == DType::kF32) {
    uint32_t bits;
    std::memcpy(&bits, static_cast<const uint8_t*>(p) + at * 4, 4);
    return bits;
  }
  uint16_t half;
  std::memcpy(&half, static_cast<const uint8_t*>(p) + at * 2, 2);
  return static_cast<uint32_t>(half) << 16;
}

// Marks the n first of `size` keys.
void Choose(const int32_t* keys, int size, int n, uint8_t* kept) {
  for (int i = 0; i < size; ++i) {
    int beaten_by = 0;
    for (int j = 0; j < size; ++j) beaten_by += NmGoesBefore(keys[j], j, keys[i], i);
    kept[i] = beaten_by < n;
  }
}

template <DType D, int M>
void MaskRun(const void* score, int64_t count, int n, bool magnitude, uint8_t* mask) {
  int32_t keys[M];
  for (int64_t begin = 0; begin < count; begin += M) {
    const int size = count - begin < M ? static_cast<int>(count - begin) : M;
    for (int i = 0; i < size; ++i) {
      keys[i] = NmSortKey(BitsAt(score, begin + i, D), D == DType::kF16, magnitude);
    }
    Choose(keys, size, n, mask + begin);
  }
}

template <int M>
void MaskColumns(const NmColumns& job, int64_t row, int rows, int64_t cols) {
  for (int first = 0; first < rows; first += M) {
    const int size = rows - first < M ? rows - first : M;
    for (int64_t k = 0; k < cols; ++k) {
      int32_t keys[M];
      uint8_t kept[M];
      for (int i = 0; i < size; ++i) {
        const uint32_t bits = BitsAt(job.score, (row + first + i) * job.stride + k, job.dtype);
        keys[i] = NmSortKey(bits, job.dtype == DType::kF16, job.magnitude);
      }
      Choose(keys, size, job.n, kept);
      for (int i = 0; i < size; ++i) job.mask[(row + first + i) * job.mask_stride + k] = kept[i];
    }
  }
}

// One row of a panel; false where the mask keeps more than n of a group.
bool PackRow(const NmPackJob& job, int64_t row) {
  const NmStructure& s = job.layout;
  const int64_t panel = row / kNmLanes, lane = row % kNmLanes;
  const int64_t padded = (s.cols + s.window - 1) / s.window * s.window;
  const int64_t fields = 32 / s.field_bits;
  const auto element = static_cast<int64_t>(SizeOf(job.dtype));
  bool sound = true;
  int64_t step = 0;
  uint32_t word = 0;
  for (int64_t k = 0; k < padded; k += s.m) {
    int32_t keys[32];
    uint8_t kept[32];
    uint32_t bits[32];
    int marked = 0;
    for (int i = 0; i < s.m; ++i) {
      bits[i] = 0;
      keys[i] = INT32_MIN;  // beyond the matrix: goes last
      if (k + i >= s.cols) continue;
      keys[i] = 0;
      if (row >= s.rows) continue;
      bits[i] = BitsAt(job.dense, row * job.row_stride + (k + i) * job.col_stride, job.dtype);
      if (job.mask == nullptr) {
        keys[i] = NmSortKey(bits[i], job.dtype == DType::kF16, true);
        continue;
      }
      keys[i] = job.mask[row * job.mask_row_stride + (k + i) * job.mask_col_stride] != 0;
      if (keys[i] == 0) bits[i] = 0;
      marked += keys[i];
    }
    sound &= marked <= s.n;
    Choose(keys, s.m, s.n, kept);
    for (int i = 0; i < s.m; ++i) {
      if (kept[i] == 0) continue;
      uint8_t* value = job.values + ((panel * s.steps + step) * kNmLanes + lane) * element;
      const uint32_t stored = element == 4 ? bits[i] : bits[i] >> 16;
      std::memcpy(value, &stored, static_cast<size_t>(element));
      word |= static_cast<uint32_t>(k % s.window + i) << (step % fields * s.field_bits);
      if (++step % fields != 0 && step != s.steps) continue;
      std::memcpy(job.words + ((panel * s.words + (step - 1) / fields) * kNmLanes + lane) * 4,
                  &word, 4);
      word = 0;
    }
  }
  return sound;
}

bool PackPanels(const NmPackJob& job, int64_t begin, int64_t end) {
  bool sound = true;
  for (int64_t row = begin * kNmLanes; row < end * kNmLanes; ++row) sound &= PackRow(job, row);
  return sound;
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
  NmMaskKernels kernels{
      "scalar",
      kScalar,
      {},
      {MaskColumns<2>, MaskColumns<4>, MaskColumns<8>, MaskColumns<16>, MaskColumns<32>},
      PackPanels};
  Fill<DType::kF32>(kernels.run[0]);
  Fill<DType::kBF16>(kernels.run[1]);
  Fill<DType::kF16>(kernels.run[2]);
  return kernels;
}

}  // namespace

extern const NmMaskKernels kNmMaskKernels_scalar = Make();

}  // namespace sparsekern
