// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/isa.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace sparsekern {
namespace {

using Names = std::vector<std::string>;

// Goes back to the environment's mask at the end of a test.
struct RestoreIsa {
  ~RestoreIsa() { static_cast<void>(SetActiveIsa(0)); }
};

TEST(IsaTest, DetectedHoldsScalarAndIsStable) {
  EXPECT_NE(DetectedIsa() & kScalar, 0u);
  EXPECT_EQ(DetectedIsa(), DetectedIsa());
}

TEST(IsaTest, DetectedIsClosedUnderImplication) {
  for (const std::string& name : IsaNames(DetectedIsa())) {
    IsaMask mask = 0;
    const Status status = IsaFromName(name, &mask);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(mask & ~DetectedIsa(), 0u) << name;
  }
}

TEST(IsaTest, NameGivesTheSetAndWhatItImplies) {
  IsaMask mask = 0;
  ASSERT_TRUE(IsaFromNameUnchecked("scalar", &mask).ok());
  EXPECT_EQ(IsaNames(mask), Names({"scalar"}));
  ASSERT_TRUE(IsaFromNameUnchecked("avx2", &mask).ok());
  EXPECT_EQ(IsaNames(mask), Names({"scalar", "avx2"}));
  ASSERT_TRUE(IsaFromNameUnchecked("avx512", &mask).ok());
  EXPECT_EQ(IsaNames(mask), Names({"scalar", "avx2", "avx512"}));
  ASSERT_TRUE(IsaFromNameUnchecked("avx512vnni", &mask).ok());
  EXPECT_EQ(IsaNames(mask), Names({"scalar", "avx2", "avx512", "avx512vnni"}));
  ASSERT_TRUE(IsaFromNameUnchecked("neondotprod", &mask).ok());
  EXPECT_EQ(IsaNames(mask), Names({"scalar", "neon", "neondotprod"}));
  ASSERT_TRUE(IsaFromNameUnchecked("simd128", &mask).ok());
  EXPECT_EQ(IsaNames(mask), Names({"scalar", "simd128"}));
}

TEST(IsaTest, UnknownNameListsTheValidOnes) {
  for (const char* name : {"sse9", "", "AVX2", "avx2 "}) {
    IsaMask mask = 77;
    const Status status = IsaFromName(name, &mask);
    EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
    EXPECT_EQ(status.message().rfind("isa: name must be one of scalar", 0), 0u) << status.message();
    EXPECT_NE(status.message().find("got \"" + std::string(name) + "\""), std::string::npos);
    EXPECT_EQ(mask, 77u);
  }
}

TEST(IsaTest, SetOfAnotherProcessorIsAnError) {
#if defined(SPARSEKERN_ARCH_X86_64)
  const char* foreign = "neon";
#else
  const char* foreign = "avx2";
#endif
  IsaMask mask = 0;
  const Status status = IsaFromName(foreign, &mask);
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_NE(status.message().find("must be a set that this processor has (scalar"),
            std::string::npos)
      << status.message();
}

TEST(IsaTest, ActiveFollowsTheOverride) {
  const RestoreIsa restore;
  IsaMask before = 0;
  ASSERT_TRUE(ActiveIsa(&before).ok());
  IsaMask mask = 0;
  ASSERT_TRUE(SetActiveIsa(kScalar).ok());
  ASSERT_TRUE(ActiveIsa(&mask).ok());
  EXPECT_EQ(mask, static_cast<IsaMask>(kScalar));
  ASSERT_TRUE(SetActiveIsa(0).ok());
  ASSERT_TRUE(ActiveIsa(&mask).ok());
  EXPECT_EQ(mask, before);
}

TEST(IsaTest, OverrideBeyondTheProcessorIsAnError) {
  const RestoreIsa restore;
#if defined(SPARSEKERN_ARCH_X86_64)
  const IsaMask foreign = kNeon;
#else
  const IsaMask foreign = kAvx2;
#endif
  const Status status = SetActiveIsa(kScalar | foreign);
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  IsaMask mask = 0;
  ASSERT_TRUE(ActiveIsa(&mask).ok());
  EXPECT_EQ(mask & foreign, 0u);
}

#if defined(SPARSEKERN_ARCH_X86_64)
TEST(IsaTest, AgreesWithTheCompilersDetection) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  EXPECT_EQ((DetectedIsa() & kAvx2) != 0, avx2);
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  EXPECT_EQ((DetectedIsa() & kAvx512) != 0, avx512);
  EXPECT_EQ((DetectedIsa() & kAvx512Vnni) != 0, avx512 && __builtin_cpu_supports("avx512vnni"));
  EXPECT_EQ((DetectedIsa() & kAvx512Vbmi2) != 0, avx512 && __builtin_cpu_supports("avx512vbmi2"));
  EXPECT_EQ((DetectedIsa() & kAvx512Bf16) != 0, avx512 && __builtin_cpu_supports("avx512bf16"));
}
#endif

}  // namespace
}  // namespace sparsekern
