// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/isa.h"

#include <atomic>
#include <cstdlib>

#if defined(SPARSEKERN_ARCH_X86_64)
#include <cpuid.h>
#elif defined(SPARSEKERN_ARCH_AARCH64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sparsekern {

namespace {

struct IsaRow {
  Isa isa;
  const char* name;
  IsaMask implied;  // all that forcing this set also allows, itself included
  bool here;        // exists on the architecture that this file is compiled for
};

#if defined(SPARSEKERN_ARCH_X86_64)
constexpr bool kX86 = true;
#else
constexpr bool kX86 = false;
#endif
#if defined(SPARSEKERN_ARCH_AARCH64)
constexpr bool kArm = true;
#else
constexpr bool kArm = false;
#endif
#if defined(SPARSEKERN_ARCH_WASM)
constexpr bool kWasm = true;
#else
constexpr bool kWasm = false;
#endif

constexpr IsaMask kAvx2Set = kScalar | kAvx2;
constexpr IsaMask kAvx512Set = kAvx2Set | kAvx512;
constexpr IsaMask kNeonSet = kScalar | kNeon;

// The one list of names, in the order of the enumeration.
constexpr IsaRow kRows[] = {
    {kScalar, "scalar", kScalar, true},
    {kAvx2, "avx2", kAvx2Set, kX86},
    {kAvx512, "avx512", kAvx512Set, kX86},
    {kAvx512Vnni, "avx512vnni", kAvx512Set | kAvx512Vnni, kX86},
    {kAvx512Vbmi2, "avx512vbmi2", kAvx512Set | kAvx512Vbmi2, kX86},
    {kAvx512Bf16, "avx512bf16", kAvx512Set | kAvx512Bf16, kX86},
    {kAmxInt8, "amxint8", kAvx512Set | kAmxInt8, kX86},
    {kAmxBf16, "amxbf16", kAvx512Set | kAmxBf16, kX86},
    {kNeon, "neon", kNeonSet, kArm},
    {kNeonFp16, "neonfp16", kNeonSet | kNeonFp16, kArm},
    {kNeonDotprod, "neondotprod", kNeonSet | kNeonDotprod, kArm},
    {kWasmSimd128, "simd128", kScalar | kWasmSimd128, kWasm},
};

#if defined(SPARSEKERN_ARCH_X86_64)
constexpr bool Bit(uint32_t word, int bit) { return ((word >> bit) & 1u) != 0; }

uint64_t EnabledRegisters() {  // XCR0: the register files that the operating system saves
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Intel SDM volume 1, chapters 13-15 and 18; volume 2A, CPUID.
IsaMask Detect() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return kScalar;
  const bool osxsave = Bit(c, 27), avx = Bit(c, 28), fma = Bit(c, 12), f16c = Bit(c, 29);
  if (!osxsave || !avx) return kScalar;
  const uint64_t saved = EnabledRegisters();
  constexpr uint64_t kYmm = 0x6;          // SSE and AVX state
  constexpr uint64_t kZmm = kYmm | 0xe0;  // plus mask registers and both halves of ZMM
  constexpr uint64_t kTiles = 0x60000;    // AMX configuration and data
  if ((saved & kYmm) != kYmm) return kScalar;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return kScalar;
  IsaMask mask = kScalar;
  const bool avx2 = Bit(b, 5), bmi2 = Bit(b, 8);
  if (!(avx2 && bmi2 && fma && f16c)) return mask;
  mask |= kAvx2;
  const bool f = Bit(b, 16), dq = Bit(b, 17), bw = Bit(b, 30), vl = Bit(b, 31);
  if (!(f && dq && bw && vl) || (saved & kZmm) != kZmm) return mask;
  mask |= kAvx512;
  if (Bit(c, 11)) mask |= kAvx512Vnni;
  if (Bit(c, 6)) mask |= kAvx512Vbmi2;
  if ((saved & kTiles) == kTiles && Bit(d, 24)) {
    if (Bit(d, 25)) mask |= kAmxInt8;
    if (Bit(d, 22)) mask |= kAmxBf16;
  }
  const bool has_subleaf_1 = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0;
  if (has_subleaf_1 && Bit(a, 5)) mask |= kAvx512Bf16;
  return mask;
}
#elif defined(SPARSEKERN_ARCH_AARCH64)
IsaMask Detect() {
  IsaMask mask = kScalar | kNeon;
#if defined(__linux__)
  // Linux, Documentation/arch/arm64/elf_hwcaps.rst; the constants are part of its ABI.
  constexpr unsigned long kHwcapAsimdhp = 1ul << 10;
  constexpr unsigned long kHwcapAsimddp = 1ul << 20;
  const unsigned long capabilities = getauxval(AT_HWCAP);
  if ((capabilities & kHwcapAsimdhp) != 0) mask |= kNeonFp16;
  if ((capabilities & kHwcapAsimddp) != 0) mask |= kNeonDotprod;
#elif defined(__APPLE__)
  mask |= kNeonFp16 | kNeonDotprod;  // in every Apple silicon processor
#endif
  return mask;
}
#elif defined(SPARSEKERN_WASM_SIMD128)
IsaMask Detect() { return kScalar | kWasmSimd128; }
#else
IsaMask Detect() { return kScalar; }
#endif

std::string ValidNames() {
  std::string names;
  for (const IsaRow& row : kRows) {
    if (!row.here) continue;
    if (!names.empty()) names += ", ";
    names += row.name;
  }
  return names;
}

std::string Join(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

struct Environment {
  Status status;
  IsaMask mask = kScalar;
};

Environment ReadEnvironment() {
  Environment environment;
  environment.mask = DetectedIsa();
  const char* name = std::getenv("SPARSEKERN_ISA");
  if (name == nullptr || *name == '\0') return environment;
  const Status status = IsaFromName(name, &environment.mask);
  if (!status.ok())
    environment.status = Status::InvalidValue("SPARSEKERN_ISA: " + status.message());
  return environment;
}

std::atomic<IsaMask> g_override{0};  // the library's only global; 0: obey the environment

}  // namespace

IsaMask DetectedIsa() {
  static const IsaMask detected = Detect();
  return detected;
}

Status IsaFromNameUnchecked(std::string_view name, IsaMask* mask) {
  for (const IsaRow& row : kRows) {
    if (name == row.name) {
      *mask = row.implied;
      return Status::Ok();
    }
  }
  return Status::InvalidValue("isa: name must be one of " + ValidNames() + ", got \"" +
                              std::string(name) + "\"");
}

Status IsaFromName(std::string_view name, IsaMask* mask) {
  IsaMask wanted = 0;
  SPARSEKERN_RETURN_IF_ERROR(IsaFromNameUnchecked(name, &wanted));
  if ((wanted & ~DetectedIsa()) != 0) {
    return Status::InvalidValue("isa: name must be a set that this processor has (" +
                                Join(IsaNames(DetectedIsa())) + "), got \"" + std::string(name) +
                                "\"");
  }
  *mask = wanted;
  return Status::Ok();
}

std::vector<std::string> IsaNames(IsaMask mask) {
  std::vector<std::string> names;
  for (const IsaRow& row : kRows) {
    if ((mask & row.isa) != 0) names.emplace_back(row.name);
  }
  return names;
}

Status ActiveIsa(IsaMask* mask) {
  const IsaMask forced = g_override.load(std::memory_order_relaxed);
  if (forced != 0) {
    *mask = forced;
    return Status::Ok();
  }
  static const Environment environment = ReadEnvironment();
  if (!environment.status.ok()) return environment.status;
  *mask = environment.mask;
  return Status::Ok();
}

Status SetActiveIsa(IsaMask mask) {
  if ((mask & ~DetectedIsa()) != 0) {
    return Status::InvalidValue("isa: mask must be part of what this processor has (" +
                                Join(IsaNames(DetectedIsa())) + "), got " + Join(IsaNames(mask)));
  }
  g_override.store(mask == 0 ? 0 : (mask | kScalar), std::memory_order_relaxed);
  return Status::Ok();
}

}  // namespace sparsekern
