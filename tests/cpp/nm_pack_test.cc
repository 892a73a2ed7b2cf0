// SPDX-License-Identifier: Apache-2.0
// Every kernel set of nm_pack against NmPacker, and its choice against nm_mask's.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "csr_case.h"
#include "ops/nm_mask/kernels.h"
#include "sparsekern/nm_mask.h"

namespace sparsekern::testing {
namespace {

std::vector<NamedIsa> RunnablePackIsas() {
  std::vector<NamedIsa> out;
#define SPARSEKERN_NM_MASK_KERNELS(isa_flag, isa_suffix) \
  if ((DetectedIsa() & isa_flag) != 0) out.push_back({#isa_suffix, isa_flag});
#include "ops/nm_mask/kernels.inc"
#undef SPARSEKERN_NM_MASK_KERNELS
  return out;
}

using Bytes = std::vector<uint8_t>;

// A matrix of bit patterns, NaN, infinities, both zeros and ties among them.
Bytes MakeDense(DType dtype, int64_t count, uint64_t seed) {
  const uint16_t special[] = {0x7fc0, 0xffc1, 0x7f80, 0xff80, 0x7c00, 0x7e01, 0x0000, 0x8000,
                              0x3f80, 0xbf80, 0x3f80, 0x0001, 0x8001, 0x4000, 0xc000, 0x3f81};
  Random random(seed);
  const size_t element = SizeOf(dtype);
  Bytes out(static_cast<size_t>(count) * element);
  for (size_t i = 0; i < out.size(); i += element) {
    const bool tie = random.Below(2) == 0;
    const uint16_t upper =
        tie ? special[random.Below(16)] : static_cast<uint16_t>(random.Below(0x10000));
    const auto lower = static_cast<uint32_t>(tie ? 0 : random.Below(0x10000));
    const uint32_t bits = static_cast<uint32_t>(upper) << 16 | lower;
    std::memcpy(out.data() + i, element == 4 ? static_cast<const void*>(&bits) : &upper, element);
  }
  return out;
}

Bytes Turned(const Bytes& in, int64_t rows, int64_t cols, size_t element) {
  Bytes out(in.size());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      std::memcpy(out.data() + static_cast<size_t>(col * rows + row) * element,
                  in.data() + static_cast<size_t>(row * cols + col) * element, element);
    }
  }
  return out;
}

struct Packed {
  Bytes values, structure;
  bool operator==(const Packed&) const = default;
};

Packed Reference(const Bytes& dense, DType dtype, int64_t rows, int64_t cols, int n, int m,
                 const Bytes& mask) {
  NmPacker packer;
  const Status status = packer.Plan(dense.data(), dtype, rows, cols, n, m, mask.data());
  EXPECT_TRUE(status.ok()) << status.message();
  Packed out{Bytes(static_cast<size_t>(packer.value_count()) * SizeOf(dtype)),
             Bytes(packer.structure_bytes())};
  packer.Fill(out.values.data(), out.structure.data());
  return out;
}

// mask: nullptr selects. down: the matrix, and mask_down: the mask, lies transposed in memory.
Packed Pack(const Bytes& dense, DType dtype, int64_t rows, int64_t cols, int n, int m,
            const Bytes* mask, bool down, bool mask_down,
            const ParallelFor& parallel_for = Serial()) {
  NmPackArgs args;
  const Status planned = PlanNm(rows, cols, n, m, dtype, &args.layout);
  EXPECT_TRUE(planned.ok()) << planned.message();
  // Bytes of their own, so that AddressSanitizer sees a read beyond the last element.
  const Bytes own = down ? Turned(dense, rows, cols, SizeOf(dtype)) : dense;
  args.dense = own.data();
  args.dtype = dtype;
  args.row_stride = down ? 1 : cols;
  args.col_stride = down ? rows : 1;
  Bytes kept;
  if (mask != nullptr) {
    kept = mask_down ? Turned(*mask, rows, cols, 1) : *mask;
    args.mask = kept.data();
    args.mask_row_stride = mask_down ? 1 : cols;
    args.mask_col_stride = mask_down ? rows : 1;
  }
  Packed out{Bytes(static_cast<size_t>(args.layout.value_count()) * SizeOf(dtype), 0xa5),
             Bytes(NmStructureBytes(args.layout), 0xa5)};
  args.values = out.values.data();
  args.structure = out.structure.data();
  const Status status = NmPack(args, parallel_for);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

Bytes Largest(const Bytes& dense, DType dtype, int64_t rows, int64_t cols, int n, int m) {
  Bytes mask(static_cast<size_t>(rows * cols));
  const NmMaskArgs args{dense.data(), dtype, rows, cols, n, m, true, mask.data()};
  const Status status = NmMask(args, Serial());
  EXPECT_TRUE(status.ok()) << status.message();
  return mask;
}

class NmPackTest : public ::testing::TestWithParam<NamedIsa> {};

void Check(DType dtype, int64_t rows, int64_t cols, int n, int m, const ParallelFor& threads) {
  const std::string what = std::to_string(n) + ":" + std::to_string(m) + " " + Name(dtype) + " " +
                           std::to_string(rows) + "x" + std::to_string(cols);
  const Bytes dense = MakeDense(dtype, rows * cols, static_cast<uint64_t>(rows * 1000 + cols + n));
  Bytes mask = Largest(dense, dtype, rows, cols, n, m);
  Packed want = Reference(dense, dtype, rows, cols, n, m, mask);
  for (const bool down : {false, true}) {
    ASSERT_EQ(Pack(dense, dtype, rows, cols, n, m, nullptr, down, false, threads), want) << what;
    ASSERT_EQ(Pack(dense, dtype, rows, cols, n, m, &mask, down, !down, threads), want) << what;
  }
  Random random(7);  // groups that keep fewer, and any byte that is not 0 for a flag
  for (uint8_t& flag : mask) {
    flag = static_cast<uint8_t>(flag != 0 && random.Below(3) != 0 ? 1 + random.Below(255) : 0);
  }
  want = Reference(dense, dtype, rows, cols, n, m, mask);
  for (const bool down : {false, true}) {
    ASSERT_EQ(Pack(dense, dtype, rows, cols, n, m, &mask, down, down, threads), want) << what;
  }
}

TEST_P(NmPackTest, EveryPattern) {
  const ForcedIsa forced(GetParam());
  for (const int m : {2, 4, 8, 16, 32}) {
    for (int n = 1; n < m; ++n) {
      const DType dtype = n % 3 == 0 ? DType::kF16 : n % 3 == 1 ? DType::kF32 : DType::kBF16;
      Check(dtype, 18, 70, n, m, Serial());
    }
  }
}

TEST_P(NmPackTest, EveryWidthAndEveryDtype) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int m : {2, 4, 8, 16, 32}) {
      for (int64_t size = 1; size <= 2 * m + 1; size += m > 8 ? 5 : 1) {
        Check(dtype, size % 35 + 1, size, m > 4 ? 3 : 1, m, Serial());
      }
    }
  }
}

TEST_P(NmPackTest, ManyPanels) {  // more than lie side by side in a stretch
  const ForcedIsa forced(GetParam());
  Check(DType::kF32, 65 * kNmLanes + 3, 40, 2, 8, Serial());
#if !defined(__wasm__)
  ThreadPool pool(2);
  Check(DType::kBF16, 9 * kNmLanes, 65, 3, 4, pool.parallel_for());
#endif
}

TEST_P(NmPackTest, RefusesWhatKeepsTooMuch) {
  const ForcedIsa forced(GetParam());
  Bytes mask(20 * 16);
  for (const int column : {9, 11, 15}) mask[static_cast<size_t>(18 * 16 + column)] = 1;
  const Bytes dense(20 * 16 * 4);
  Bytes values(2 * 4 * 16 * 4), structure(64 + 2 * 64);
  NmPackArgs args;
  ASSERT_TRUE(PlanNm(20, 16, 2, 8, DType::kF32, &args.layout).ok());
  ASSERT_EQ(values.size(), static_cast<size_t>(args.layout.value_count()) * 4);
  ASSERT_EQ(structure.size(), NmStructureBytes(args.layout));
  args.dense = dense.data();
  args.row_stride = 16;
  args.col_stride = 1;
  args.mask = mask.data();
  args.mask_row_stride = 16;
  args.mask_col_stride = 1;
  args.values = values.data();
  args.structure = structure.data();
  EXPECT_EQ(NmPack(args, Serial()).message(),
            "nm_pack: row 18, columns 8 to 15 must keep at most 2 of 8, got 3");
  args.mask_col_stride = args.mask_row_stride = 2;
  EXPECT_EQ(NmPack(args, Serial()).message(), "nm_pack: one stride of mask must be 1");
  args.col_stride = 2;
  EXPECT_EQ(NmPack(args, Serial()).message(), "nm_pack: one stride of dense must be 1");
  args.dtype = DType::kI8;
  EXPECT_EQ(NmPack(args, Serial()).message(),
            "nm_pack: dense must be float32, bfloat16 or float16, got int8");
}

INSTANTIATE_TEST_SUITE_P(Isas, NmPackTest, ::testing::ValuesIn(RunnablePackIsas()), IsaName);

}  // namespace
}  // namespace sparsekern::testing
