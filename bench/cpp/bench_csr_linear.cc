// SPDX-License-Identifier: Apache-2.0
// csr_linear from C++, every kernel set of this processor: no Python, no torch. Decode shapes walk
// through copies of the weights larger than the caches.
#include <string>

#include "packed.h"

namespace sparsekern::bench {
namespace {

constexpr int64_t kColdBytes = int64_t{192} << 20;

void Linear(benchmark::State& state, KernelSet set, int64_t x_rows, int64_t rows, int64_t cols,
            int sparsity, int threads) {
  Packed& w = PackedOnce(rows, cols, sparsity);
  const std::vector<float> x = RandomVector(x_rows * cols, 2);
  std::vector<float> y(static_cast<size_t>(x_rows * rows));
  LinearArgs args;
  args.x = x.data();
  args.y = y.data();
  args.x_rows = x_rows;
  args.x_stride = cols;
  args.y_stride = rows;
  const ForcedIsa forced(set.isa);
  const ParallelFor parallel_for = Threads(threads);

  Status status = CsrLinear(w.matrix(), args, parallel_for);
  if (!status.ok()) return Fail(state, status.message());
  for (int64_t m = 0; m < x_rows; m += x_rows > 1 ? 5 : 1) {
    for (int64_t n = 0; n < rows; ++n) {
      const double want = w.Dot(n, x.data() + m * cols, 1);
      if (!Agrees(state, y[static_cast<size_t>(m * rows + n)], want, cols)) return;
    }
  }
  if (x_rows <= 16) w.MakeCopies(kColdBytes);
  for (auto _ : state) {
    status = CsrLinear(w.Next(), args, parallel_for);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  if (!status.ok()) Fail(state, status.message());
  SetRates(state, 2.0 * static_cast<double>(w.nnz() * x_rows), static_cast<double>(w.bytes()));
  IsaMask mask = 0;
  if (ActiveIsa(&mask).ok()) state.SetLabel(CsrLinearKernelName(w.matrix(), x_rows, mask));
}

void Register(int64_t x_rows, int64_t rows, int64_t cols) {
  for (int sparsity : {80, 90}) {
    for (int threads : ThreadCounts()) {
      for (const KernelSet& set : KernelSets()) {
        const std::string name = "csr_linear/" + std::to_string(x_rows) + "x" +
                                 std::to_string(cols) + "x" + std::to_string(rows) + "/" +
                                 std::to_string(sparsity) + "/" + std::to_string(threads) + "/" +
                                 set.name;
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          Linear(state, set, x_rows, rows, cols, sparsity, threads);
        })->UseRealTime();
      }
    }
  }
}

const bool g_registered = [] {
#define SPARSEKERN_BENCH_LINEAR(x_rows, rows, cols) Register(x_rows, rows, cols);
#include "shapes.inc"
  return true;
}();

}  // namespace
}  // namespace sparsekern::bench
