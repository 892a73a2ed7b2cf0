// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: any bytes as a csr matrix. What the validator accepts must read back, transpose
// and pack again; what it refuses, the kernels must still survive, because operators check only the
// header and the offsets on each call.
//
// An input is: dtype (1 byte), length of the structure (3 bytes, little-endian), structure, values.
// tests/fuzz/make_seeds.py writes valid ones.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ops/csr_spmm/kernels.h"
#include "sparsekern/csr.h"
#include "sparsekern/csr_spmm.h"

namespace sparsekern {
namespace {

// Larger matrices find nothing that small ones do not, and take memory and time.
constexpr int64_t kMaxElements = 1 << 19;

void Require(bool condition) {
  if (!condition) std::abort();
}

// An exact copy: AddressSanitizer then sees the first byte read beyond it.
std::vector<uint8_t> Copy(const uint8_t* data, size_t size) {
  return std::vector<uint8_t>(data, data + size);
}

void ReadBack(const CsrStructure& s, const std::vector<uint8_t>& values, DType dtype) {
  const auto elements = static_cast<size_t>(s.rows * s.cols);
  std::vector<uint8_t> dense(elements * SizeOf(dtype));
  std::vector<uint8_t> mask(elements);
  UnpackCsr(s, values.data(), dtype, dense.data());
  CsrMask(s, mask.data());

  CsrPacker packer;
  Require(packer.Plan(dense.data(), dtype, s.rows, s.cols, mask.data(), s.block_rows).ok());
  std::vector<uint8_t> structure(packer.structure_bytes());
  std::vector<uint8_t> packed(static_cast<size_t>(packer.value_count()) * SizeOf(dtype));
  packer.Fill(packed.data(), structure.data());
  Require(
      ValidateCsr(structure.data(), structure.size(), packed.data(), packer.value_count(), dtype)
          .ok());
  CsrStructure again;
  Require(ParseCsrStructure(structure.data(), structure.size(), "fuzz", &again).ok());
  Require(again.kept == s.kept);
  std::vector<uint8_t> dense_again(dense.size());
  UnpackCsr(again, packed.data(), dtype, dense_again.data());
  Require(dense_again == dense);

  std::vector<uint8_t> transposed;
  std::vector<int64_t> permutation;
  Require(TransposeCsr(s, &transposed, &permutation).ok());
  const std::vector<uint8_t> zeros(permutation.size());
  Require(ValidateCsr(transposed.data(), transposed.size(), zeros.data(),
                      static_cast<int64_t>(zeros.size()), DType::kI8)
              .ok());
  for (const int64_t from : permutation) Require(from >= -1 && from < s.value_count());
}

void Multiply(const CsrMatrix& w) {
  const int64_t rows = w.structure.rows;
  const int64_t cols = w.structure.cols;
  for (const int64_t x_rows : {1, 5, 20}) {
    const std::vector<float> x(static_cast<size_t>(x_rows * cols), 0.5f);
    std::vector<float> y(static_cast<size_t>(x_rows * rows));
    LinearArgs args;
    args.x = x.data();
    args.y = y.data();
    args.x_rows = x_rows;
    args.x_stride = cols;
    args.y_stride = rows;
    Require(CsrLinear(w, args, Serial()).ok());
    if (w.dtype == DType::kI8) {
      args.int8_x = true;
      Require(CsrLinear(w, args, Serial()).ok());
    }
    if (x_rows != 5) continue;
    std::vector<float> values_grad(static_cast<size_t>(w.structure.value_count()));
    CsrSddmmArgs sddmm;
    sddmm.grad = y.data();
    sddmm.x = x.data();
    sddmm.x_rows = x_rows;
    sddmm.values_grad = values_grad.data();
    Require(CsrSddmm(w.structure, sddmm, Serial()).ok());
  }
}

void MultiplyOnEveryIsa(const CsrMatrix& w) {
#define SPARSEKERN_CSR_KERNELS(isa_flag, isa_suffix) \
  if ((DetectedIsa() & isa_flag) != 0) {             \
    Require(SetActiveIsa(kScalar | isa_flag).ok());  \
    Multiply(w);                                     \
  }
#include "ops/csr_spmm/kernels.inc"
#undef SPARSEKERN_CSR_KERNELS
  if (w.dtype == DType::kI8) {  // int8 dot products, where there are any
    Require(SetActiveIsa(DetectedIsa()).ok());
    Multiply(w);
  }
}

}  // namespace
}  // namespace sparsekern

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sparsekern;
  if (size < 4) return 0;
  const auto dtype = static_cast<DType>(data[0] % 4);
  const size_t wanted =
      data[1] | static_cast<size_t>(data[2]) << 8 | static_cast<size_t>(data[3]) << 16;
  const size_t length = std::min(wanted, size - 4);
  const std::vector<uint8_t> structure = Copy(data + 4, length);
  std::vector<uint8_t> values = Copy(data + 4 + length, size - 4 - length);

  CsrMatrix w;
  w.dtype = dtype;
  const bool parsed =
      ParseCsrStructure(structure.data(), structure.size(), "fuzz", &w.structure).ok();
  const bool valid = ValidateCsr(structure.data(), structure.size(), values.data(),
                                 static_cast<int64_t>(values.size() / SizeOf(dtype)), dtype)
                         .ok();
  Require(parsed || !valid);
  const CsrStructure& s = w.structure;
  if (!parsed || s.rows > kMaxElements || s.cols > kMaxElements || s.rows * s.cols > kMaxElements) {
    return 0;
  }
  if (valid) ReadBack(s, values, dtype);
  values.resize(static_cast<size_t>(s.value_count()) * SizeOf(dtype));
  w.values = values.data();
  const std::vector<float> scale(static_cast<size_t>(s.rows), 0.1f);
  if (dtype == DType::kI8) w.scale = scale.data();
  MultiplyOnEveryIsa(w);
  return 0;
}
