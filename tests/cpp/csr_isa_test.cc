// SPDX-License-Identifier: Apache-2.0
// Kernel selection as a pure function of the mask, and that no kernel set escapes the tests.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

#include "csr_case.h"

namespace sparsekern::testing {
namespace {

std::string Linear(const Case& c, int64_t x_rows, IsaMask mask) {
  return CsrLinearKernelName(c.Matrix(), x_rows, mask);
}

std::string Conv2d(const Case& c, IsaMask mask) { return CsrConv2dKernelName(c.Matrix(), mask); }

// Prints the sets that run here. A build whose processor is known names them in
// SPARSEKERN_TEST_ISAS
// ("scalar x86_avx2 x86_avx512"), and a set that is missing fails.
TEST(CsrIsaTest, NoExpectedSetIsMissing) {
  std::string runnable = " ";
  for (const NamedIsa& isa : RunnableInt8Isas()) runnable += std::string(isa.name) + " ";
  // Beyond those of csr.
#define SPARSEKERN_BITMAP_KERNELS(isa_flag, isa_suffix)                                       \
  if ((DetectedIsa() & isa_flag) != 0 && runnable.find(" " #isa_suffix " ") == runnable.npos) \
    runnable += #isa_suffix " ";
#include "ops/bitmap_linear/kernels.inc"
#undef SPARSEKERN_BITMAP_KERNELS
  std::cout << "kernel sets tested:" << runnable << std::endl;
  const char* expected = std::getenv("SPARSEKERN_TEST_ISAS");
  std::istringstream names(expected == nullptr ? "scalar" : expected);
  for (std::string name; names >> name;) {
    EXPECT_NE(runnable.find(" " + name + " "), std::string::npos) << name;
  }
}

TEST(CsrIsaTest, ScalarEndsTheList) {
  ASSERT_FALSE(CompiledIsas().empty());
  EXPECT_STREQ(CompiledIsas().back().name, "scalar");
}

TEST(CsrIsaTest, EachSetIsSelectedByItsBit) {
  const Case c = MakeCase(20, 20, 0.5, DType::kF32, 1);
  for (const NamedIsa& isa : CompiledIsas()) {
    const std::string ending = std::string("__") + isa.name;
    EXPECT_EQ(Linear(c, 1, kScalar | isa.isa), "csr_linear_r1_f32_decode" + ending);
    EXPECT_EQ(Linear(c, 1000, kScalar | isa.isa), "csr_linear_r1_f32_batch" + ending);
    EXPECT_EQ(Conv2d(c, kScalar | isa.isa), "csr_conv2d_r1_f32_batch" + ending);
  }
}

TEST(CsrIsaTest, EarlierInTheListWins) {
  const Case c = MakeCase(20, 20, 0.5, DType::kF32, 1);
  IsaMask mask = 0;
  const std::vector<NamedIsa> all = CompiledIsas();
  for (auto isa = all.rbegin(); isa != all.rend(); ++isa) {
    mask |= isa->isa;
    EXPECT_EQ(Linear(c, 1, mask), std::string("csr_linear_r1_f32_decode__") + isa->name);
  }
}

TEST(CsrIsaTest, BitsOfOtherArchitecturesChangeNothing) {
  const Case c = MakeCase(20, 20, 0.5, DType::kF32, 1);
  IsaMask own = 0;
  for (const NamedIsa& isa : CompiledIsas()) own |= isa.isa;
  EXPECT_EQ(Linear(c, 1, ~own | kScalar), "csr_linear_r1_f32_decode__scalar");
  EXPECT_EQ(Linear(c, 1, 0), "csr_linear_r1_f32_decode__scalar");
}

TEST(CsrIsaTest, TheNameSaysBlockRowsAndDtype) {
  const DType dtypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8};
  const char* names[] = {"f32", "bf16", "f16", "i8"};
  for (int d = 0; d < 4; ++d) {
    for (const int r : {1, 2, 4}) {
      const std::string middle = "_r" + std::to_string(r) + "_" + names[d] + "_";
      const Case c = MakeCase(20, 20, 0.5, dtypes[d], r);
      EXPECT_EQ(Linear(c, 1, kScalar), "csr_linear" + middle + "decode__scalar");
      EXPECT_EQ(Conv2d(c, kScalar), "csr_conv2d" + middle + "batch__scalar");
    }
  }
}

}  // namespace
}  // namespace sparsekern::testing
