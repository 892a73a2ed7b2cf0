// SPDX-License-Identifier: Apache-2.0
// The CUDA mask kernel's threads, run on the host, against the CPU kernel.
#include <gtest/gtest.h>

#include <vector>

#include "csr_case.h"
#include "ops/nm_mask/sort_key.h"
#include "sparsekern/nm_mask.h"

namespace sparsekern::testing {
namespace {

// Scores with ties, both zeros, infinities, NaN of both signs and subnormals.
Elements AwkwardScores(DType dtype, int64_t n) {
  Elements e = RandomElements(dtype, n, 11);
  Random random(12);
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float special[] = {0.0f, -0.0f, 1.0f, -1.0f, inf, -inf, nan, -nan, 1e-7f, -1e-7f};
  for (size_t i = 0; i < e.size(); ++i) {
    if (random.Below(2) == 0) e.Set(i, special[random.Below(10)]);
  }
  return e;
}

TEST(CudaNmMask, ThreadsKeepWhatTheCpuKeeps) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int m : {2, 4, 8, 16, 32}) {
      for (const int64_t cols : {1, 7, 64, 67}) {
        for (const bool magnitude : {false, true}) {
          constexpr int64_t kRows = 9;
          const Elements score = AwkwardScores(dtype, kRows * cols);
          for (const int n : {1, m / 2, m - 1}) {
            NmMaskArgs args;
            std::vector<uint8_t> expected(static_cast<size_t>(kRows * cols), 9);
            args.score = score.data();
            args.dtype = dtype;
            args.rows = kRows;
            args.cols = cols;
            args.n = n;
            args.m = m;
            args.magnitude = magnitude;
            args.mask = expected.data();
            ASSERT_TRUE(NmMask(args, Serial()).ok());

            std::vector<uint8_t> mask(expected.size(), 7);
            const int64_t threads = kRows * ((cols + m - 1) / m * m);
            const auto key_of = [&](int64_t thread) {
              const NmMaskElement at = NmMaskElementAt(thread, cols, m);
              if (thread >= threads || at.col >= cols) return INT32_MIN;
              const size_t bytes = SizeOf(dtype);
              uint32_t bits = 0;
              std::memcpy(&bits,
                          score.bytes.data() + static_cast<size_t>(at.row * cols + at.col) * bytes,
                          bytes);
              return NmSortKey(bits << (32 - 8 * bytes), dtype == DType::kF16, magnitude);
            };
            for (int64_t thread = 0; thread < threads; ++thread) {
              const int own = static_cast<int>(thread % m);
              int before = 0;
              for (int d = 1; d < m; ++d) {
                before += NmGoesBefore(key_of(thread ^ d), own ^ d, key_of(thread), own) ? 1 : 0;
              }
              const NmMaskElement at = NmMaskElementAt(thread, cols, m);
              if (at.col < cols) mask[static_cast<size_t>(at.row * cols + at.col)] = before < n;
            }
            ASSERT_EQ(mask, expected) << n << ":" << m << " " << cols << " " << Name(dtype);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsekern::testing
