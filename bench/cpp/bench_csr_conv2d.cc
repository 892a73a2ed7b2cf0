// SPDX-License-Identifier: Apache-2.0
// csr_conv2d (1x1, stride 1) from C++, every kernel set of this processor: no Python, no torch.
#include <string>

#include "packed.h"

namespace sparsekern::bench {
namespace {

void Conv2d(benchmark::State& state, KernelSet set, int64_t size, int64_t in, int64_t out,
            int sparsity, int threads) {
  Packed& w = PackedOnce(out, in, sparsity);
  const int64_t pixels = size * size;
  const std::vector<float> x = RandomVector(in * pixels, 2);
  std::vector<float> y(static_cast<size_t>(out * pixels));
  CsrConv2dArgs args;
  args.x = x.data();
  args.y = y.data();
  args.batch = 1;
  args.height = size;
  args.width = size;
  const ForcedIsa forced(set.isa);
  const ParallelFor parallel_for = Threads(threads);

  Status status = CsrConv2d(w.matrix(), args, parallel_for);
  if (!status.ok()) return Fail(state, status.message());
  for (int64_t n = 0; n < out; ++n) {
    for (int64_t p = n % 7; p < pixels; p += 7) {  // every pixel for some channel
      if (!Agrees(state, y[static_cast<size_t>(n * pixels + p)], w.Dot(n, x.data() + p, pixels),
                  in)) {
        return;
      }
    }
  }
  const CsrMatrix matrix = w.matrix();
  for (auto _ : state) {
    status = CsrConv2d(matrix, args, parallel_for);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  if (!status.ok()) Fail(state, status.message());
  SetRates(state, 2.0 * static_cast<double>(w.nnz() * pixels), static_cast<double>(w.bytes()));
  IsaMask mask = 0;
  if (ActiveIsa(&mask).ok()) state.SetLabel(CsrConv2dKernelName(matrix, mask));
}

void Register(int64_t size, int64_t in, int64_t out) {
  for (int sparsity : {80, 90}) {
    for (int threads : ThreadCounts()) {
      for (const KernelSet& set : KernelSets()) {
        const std::string name = "csr_conv2d/" + std::to_string(size) + "x" + std::to_string(size) +
                                 "x" + std::to_string(in) + "x" + std::to_string(out) + "/" +
                                 std::to_string(sparsity) + "/" + std::to_string(threads) + "/" +
                                 set.name;
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          Conv2d(state, set, size, in, out, sparsity, threads);
        })->UseRealTime();
      }
    }
  }
}

const bool g_registered = [] {
#define SPARSEKERN_BENCH_CONV2D(size, in, out) Register(size, in, out);
#include "shapes.inc"
  return true;
}();

}  // namespace
}  // namespace sparsekern::bench
