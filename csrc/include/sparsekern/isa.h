// SPDX-License-Identifier: Apache-2.0
// Instruction sets: what this processor has, and what the library is allowed to use of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sparsekern/status.h"

#if defined(__x86_64__)
#define SPARSEKERN_ARCH_X86_64 1
#elif defined(__aarch64__)
#define SPARSEKERN_ARCH_AARCH64 1
#elif defined(__wasm__)
#define SPARSEKERN_ARCH_WASM 1
#endif

namespace sparsekern {

using IsaMask = uint32_t;

// One bit per set of instructions that a kernel file may be compiled with.
enum Isa : IsaMask {
  kScalar = 1u << 0,       // the architecture's baseline; in every mask
  kAvx2 = 1u << 1,         // AVX2, FMA, F16C, BMI2
  kAvx512 = 1u << 2,       // AVX-512 F, BW, DQ, VL
  kAvx512Vnni = 1u << 3,   // int8 dot products
  kAvx512Vbmi2 = 1u << 4,  // byte and 16-bit expand and compress
  kAvx512Bf16 = 1u << 5,   // bfloat16 dot products
  kAmxInt8 = 1u << 6,      // tiles; a kernel must first ask the kernel of Linux for permission
  kAmxBf16 = 1u << 7,
  kNeon = 1u << 8,          // the baseline of aarch64
  kNeonFp16 = 1u << 9,      // float16 arithmetic (FEAT_FP16)
  kNeonDotprod = 1u << 10,  // int8 dot products (FEAT_DotProd)
  kWasmSimd128 = 1u << 11,  // chosen when the module is built
};

// What the processor and the operating system support; found once, never changes. Wide registers
// count only when the operating system saves them (XGETBV).
IsaMask DetectedIsa();

// The mask that `name` stands for: that set and all it implies ("avx512": scalar, avx2, avx512).
// kInvalidValue when the name is unknown (lists the valid ones) or this processor lacks the set.
Status IsaFromName(std::string_view name, IsaMask* mask);

// The same without asking this processor: for tests of kernel selection.
Status IsaFromNameUnchecked(std::string_view name, IsaMask* mask);

// The names of the sets in `mask`, in the order of the enumeration: {"scalar", "avx2"}.
std::vector<std::string> IsaNames(IsaMask mask);

// The mask that kernel selection obeys: the last SetActiveIsa, else the environment variable
// SPARSEKERN_ISA (read at the first call), else DetectedIsa(). Fails when SPARSEKERN_ISA is not a
// name that IsaFromName accepts; so a misspelt name stops the program instead of being ignored.
Status ActiveIsa(IsaMask* mask);

// Overrides the active mask for the whole process; 0 goes back to the environment's. The mask must
// be part of DetectedIsa(); kInvalidValue otherwise.
Status SetActiveIsa(IsaMask mask);

}  // namespace sparsekern
