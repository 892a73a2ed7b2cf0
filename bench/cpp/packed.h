// SPDX-License-Identifier: Apache-2.0
// What both benchmark programs need: a random packed matrix, forced kernels, threads, the check.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>
#include <vector>

#include "sparsekern/csr_spmm.h"

namespace sparsekern::bench {

// A row of kernels.inc.
struct KernelSet {
  IsaMask isa;
  const char* name;  // "x86_avx512"
};
// The rows that this processor can run, best first.
std::vector<KernelSet> KernelSets();

// Random weights with sparsity/100 of them pruned, packed; and the same dense, for the check.
class Packed {
 public:
  Packed(int64_t rows, int64_t cols, int sparsity);
  CsrMatrix matrix() const { return At(0); }
  // A copy at another place in memory: walking through copies keeps the caches cold. As many as
  // make `bytes` together.
  void MakeCopies(int64_t bytes);
  CsrMatrix Next();
  int64_t bytes() const;
  int64_t nnz() const { return nnz_; }
  // sum over k of w[row, k] * x[k * stride], in double.
  double Dot(int64_t row, const float* x, int64_t stride) const;

 private:
  struct Copy {
    std::vector<float> values;
    std::vector<uint8_t> structure;
  };
  CsrMatrix At(size_t copy) const;

  int64_t cols_;
  int64_t nnz_ = 0;
  std::vector<float> dense_;
  std::vector<Copy> copies_;
  size_t next_ = 0;
};

// Made once for the whole program: google-benchmark runs a benchmark several times to find its
// number of iterations, and interleaves repetitions.
Packed& PackedOnce(int64_t rows, int64_t cols, int sparsity);

std::vector<float> RandomVector(int64_t n, uint64_t seed);

// Serial, or a pool kept for the whole program.
ParallelFor Threads(int threads);
// 1, and 2 where the machine has them.
std::vector<int> ThreadCounts();

// Forces the kernels as long as it lives.
class ForcedIsa {
 public:
  explicit ForcedIsa(IsaMask isa);
  ~ForcedIsa();
};

// Marks the benchmark as failed: it reports `text` and no time, and the program's status is 1.
void Fail(benchmark::State& state, const std::string& text);

// Fails the benchmark unless |got - want| is small; returns whether it is.
bool Agrees(benchmark::State& state, double got, double want, int64_t terms);

// Rates from the useful operations and the packed bytes of one iteration.
void SetRates(benchmark::State& state, double flops, double bytes);

}  // namespace sparsekern::bench
