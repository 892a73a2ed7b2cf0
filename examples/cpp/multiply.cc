// SPDX-License-Identifier: Apache-2.0
// Packs a sparse matrix, multiplies with it on all cores and compares with the dense product.
#include <sparsekern/csr_spmm.h>
#include <sparsekern/version.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sk = sparsekern;

namespace {

constexpr int64_t kOutputs = 300, kInputs = 500, kRows = 70;
constexpr double kDensity = 0.1;

// Prints a failure; the library itself never prints and never throws its errors.
bool Succeeded(const sk::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok();
}

// The largest |y - relu(x dense^T + bias)|, relative to the sum of the products' absolute values.
double LargestError(const std::vector<float>& x, const std::vector<float>& dense,
                    const std::vector<float>& bias, const std::vector<float>& y) {
  double largest = 0;
  for (int64_t m = 0; m < kRows; ++m) {
    for (int64_t n = 0; n < kOutputs; ++n) {
      double sum = bias[n], size = std::fabs(sum);
      for (int64_t k = 0; k < kInputs; ++k) {
        const double product = double{x[m * kInputs + k]} * dense[n * kInputs + k];
        sum += product;
        size += std::fabs(product);
      }
      const double error = std::fabs(y[m * kOutputs + n] - std::fmax(sum, 0.0));
      largest = std::fmax(largest, error / size);
    }
  }
  return largest;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::bernoulli_distribution kept(kDensity);
  std::vector<float> dense(kOutputs * kInputs), x(kRows * kInputs), bias(kOutputs);
  for (float& v : dense) v = kept(random) ? normal(random) : 0.0f;
  for (float& v : x) v = normal(random);
  for (float& v : bias) v = normal(random);
  std::vector<float> y(kRows * kOutputs);

  // Pack: counting first, so that the caller allocates. What is not zero is kept.
  sk::CsrPacker packer;
  if (!Succeeded(packer.Plan(dense.data(), sk::DType::kF32, kOutputs, kInputs, nullptr, 1)))
    return 1;
  std::vector<float> values(packer.value_count());
  std::vector<uint8_t> structure(packer.structure_bytes());
  packer.Fill(values.data(), structure.data());

  // A matrix that comes from a file is checked completely first, as untrusted input.
  if (!Succeeded(sk::ValidateCsr(structure.data(), structure.size(), values.data(),
                                 packer.value_count(), sk::DType::kF32))) {
    return 1;
  }
  sk::CsrMatrix w{.values = values.data()};
  if (!Succeeded(
          sk::ParseCsrStructure(structure.data(), structure.size(), "multiply", &w.structure))) {
    return 1;
  }

  // y = relu(x w^T + bias). The library owns no threads: it takes a ParallelFor.
  sk::ThreadPool pool;
  sk::LinearArgs args{.x = x.data(), .y = y.data(), .x_rows = kRows};
  args.x_stride = kInputs;
  args.y_stride = kOutputs;
  args.epilogue = {.bias = bias.data(), .activation = sk::Activation::kRelu};
  if (!Succeeded(sk::CsrLinear(w, args, pool.parallel_for()))) return 1;

  sk::IsaMask mask = 0;
  if (!Succeeded(sk::ActiveIsa(&mask))) return 1;
  const double error = LargestError(x, dense, bias, y);
  std::printf("sparsekern %s: %s on %d threads, %lld of %lld weights kept, largest error %.1e\n",
              sk::Version(), sk::CsrLinearKernelName(w, kRows, mask).c_str(), pool.threads(),
              static_cast<long long>(w.structure.kept), static_cast<long long>(kOutputs * kInputs),
              error);
  return error < 1e-6 ? 0 : 1;
}
