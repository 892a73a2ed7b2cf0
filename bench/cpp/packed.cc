// SPDX-License-Identifier: Apache-2.0
#include "packed.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <thread>

namespace sparsekern::bench {

namespace {
bool g_failed = false;
}

void Fail(benchmark::State& state, const std::string& text) {
  g_failed = true;
  state.SkipWithError(text.c_str());
}

std::vector<KernelSet> KernelSets() {
  std::vector<KernelSet> all;
#define SPARSEKERN_CSR_KERNELS(isa_flag, isa_suffix) \
  all.push_back({static_cast<IsaMask>(isa_flag), #isa_suffix});
#include "ops/csr_spmm/kernels.inc"
#undef SPARSEKERN_CSR_KERNELS
  std::vector<KernelSet> usable;
  for (const KernelSet& set : all) {
    if ((set.isa & DetectedIsa()) == set.isa) usable.push_back(set);
  }
  return usable;
}

std::vector<float> RandomVector(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> v(static_cast<size_t>(n));
  for (float& value : v) value = normal(random);
  return v;
}

Packed::Packed(int64_t rows, int64_t cols, int sparsity)
    : cols_(cols), dense_(RandomVector(rows * cols, 1)) {
  std::mt19937_64 random(static_cast<uint64_t>(sparsity));
  for (float& w : dense_) {
    if (static_cast<int>(random() % 100) < sparsity) w = 0;
    nnz_ += w != 0;
  }
  CsrPacker packer;
  const Status status = packer.Plan(dense_.data(), DType::kF32, rows, cols, nullptr, 1);
  if (!status.ok()) throw std::runtime_error(status.message());
  Copy copy{std::vector<float>(static_cast<size_t>(packer.value_count())),
            std::vector<uint8_t>(packer.structure_bytes())};
  packer.Fill(copy.values.data(), copy.structure.data());
  copies_.push_back(std::move(copy));
}

Packed& PackedOnce(int64_t rows, int64_t cols, int sparsity) {
  static std::map<std::array<int64_t, 3>, std::unique_ptr<Packed>> all;
  std::unique_ptr<Packed>& packed = all[{rows, cols, sparsity}];
  if (!packed) packed = std::make_unique<Packed>(rows, cols, sparsity);
  return *packed;
}

CsrMatrix Packed::At(size_t i) const {
  const Copy& copy = copies_[i];
  CsrMatrix w;
  const Status status =
      ParseCsrStructure(copy.structure.data(), copy.structure.size(), "bench", &w.structure);
  if (!status.ok()) throw std::runtime_error(status.message());
  w.values = copy.values.data();
  return w;
}

int64_t Packed::bytes() const {
  return static_cast<int64_t>(copies_[0].values.size() * sizeof(float) +
                              copies_[0].structure.size());
}

void Packed::MakeCopies(int64_t total) {
  while (static_cast<int64_t>(copies_.size()) * bytes() < total) {
    copies_.push_back(Copy(copies_[0]));
  }
}

CsrMatrix Packed::Next() {
  next_ = (next_ + 1) % copies_.size();
  return At(next_);
}

double Packed::Dot(int64_t row, const float* x, int64_t stride) const {
  double sum = 0;
  for (int64_t k = 0; k < cols_; ++k) {
    sum += static_cast<double>(dense_[static_cast<size_t>(row * cols_ + k)]) * x[k * stride];
  }
  return sum;
}

ParallelFor Threads(int threads) {
  if (threads == 1) return Serial();
  static std::map<int, std::unique_ptr<ThreadPool>> pools;
  std::unique_ptr<ThreadPool>& pool = pools[threads];
  if (!pool) pool = std::make_unique<ThreadPool>(threads);
  return pool->parallel_for();
}

std::vector<int> ThreadCounts() {
  if (std::thread::hardware_concurrency() < 2) return {1};
  return {1, 2};
}

ForcedIsa::ForcedIsa(IsaMask isa) {
  const Status status = SetActiveIsa(isa | kScalar);
  if (!status.ok()) throw std::runtime_error(status.message());
}

ForcedIsa::~ForcedIsa() {
  // 0 cannot fail: it only goes back to what the program was started with.
  if (!SetActiveIsa(0).ok()) std::abort();
}

bool Agrees(benchmark::State& state, double got, double want, int64_t terms) {
  // Terms are products of two standard normals; the error of their fp32 sum is far below this.
  const double allowed = 1e-5 * std::sqrt(static_cast<double>(terms + 1)) + 1e-5 * std::abs(want);
  if (std::abs(got - want) <= allowed) return true;
  Fail(state, "wrong result: expected " + std::to_string(want) + ", got " + std::to_string(got));
  return false;
}

void SetRates(benchmark::State& state, double flops, double bytes) {
  using benchmark::Counter;
  state.counters["flops"] = Counter(flops, Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = Counter(bytes, Counter::kIsIterationInvariantRate);
}

}  // namespace sparsekern::bench

// google-benchmark's own main succeeds whatever its benchmarks report.
int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const size_t ran = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if (ran == 0) std::fprintf(stderr, "no benchmark matches the filter\n");
  return sparsekern::bench::g_failed || ran == 0 ? 1 : 0;
}
