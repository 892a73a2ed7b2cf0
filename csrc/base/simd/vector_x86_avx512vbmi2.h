// SPDX-License-Identifier: Apache-2.0
// The vector type of AVX-512 with VBMI2, which expands 16-bit elements and bytes as they are
// stored: 64 columns, a word of bits, take two expansions of 16-bit values, or one of bytes, where
// four of 32-bit lanes would follow widening.
#pragma once

#include "base/simd/vector_x86_avx512ordered.h"

namespace sparsekern {
namespace {

struct Avx512Vbmi2 : Avx512Ordered {
  // The values from p on under the bits of `word`, times 1 / kWordScale, in the order of
  // Arrange<D>. Reads 64 bytes from p on; of 16-bit values also from behind those of the lower half
  // of the word.
  template <DType D>
  static void SpreadWord(const uint8_t* p, uint64_t word, Reg (&out)[4])
    requires(D != DType::kF32)
  {
    if constexpr (D == DType::kI8) {
      WidenBytes(_mm512_maskz_expand_epi8(word, Bytes(p)), out);
      return;
    }
    __m512i half[2];
    ExpandWord(p, word, half);
    for (int i = 0; i < 2; ++i) {
      if constexpr (D == DType::kBF16) {
        WidenBF16(half[i], out + 2 * i);
      } else {
        // Halves of a register meet port 5 on the way to lanes of 32 bits, halves in memory do not.
        alignas(64) uint16_t lanes[2 * kLanes];
        uint16_t* to = lanes;
        asm("" : "+r"(to));  // or the compiler sees the halves of a register
        const uint16_t* from = lanes;
        asm("" : "+r"(from));
        _mm512_store_si512(to, half[i]);
        out[2 * i] = LoadF16(from);
        out[2 * i + 1] = LoadF16(from + kLanes);
      }
    }
  }
  // The 16-bit values from p on under the bits of `word`, in the order of the columns. Reads as
  // SpreadWord does.
  static void StoreWord(const uint8_t* p, uint64_t word, uint16_t* out) {
    __m512i half[2];
    ExpandWord(p, word, half);
    _mm512_storeu_si512(out, half[0]);
    _mm512_storeu_si512(out + 2 * kLanes, half[1]);
  }

 private:
  static void ExpandWord(const uint8_t* p, uint64_t word, __m512i (&half)[2]) {
    const auto low = static_cast<uint32_t>(word);
    auto high = static_cast<uint32_t>(word >> 32);
    asm("" : "+r"(high));  // a shift of mask registers would take port 5, and four cycles
    half[0] = _mm512_maskz_expand_epi16(low, Bytes(p));
    half[1] = _mm512_maskz_expand_epi16(high, Bytes(p + 2 * __builtin_popcount(low)));
  }
  // In a register: what an expansion reads of memory by itself depends on its mask, which
  // processors may take time over, and which Bochs 2.7 gets wrong.
  static __m512i Bytes(const uint8_t* p) {
    __m512i v = _mm512_loadu_si512(p);
    asm("" : "+v"(v));
    return v;
  }
};

}  // namespace
}  // namespace sparsekern
