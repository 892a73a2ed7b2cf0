// SPDX-License-Identifier: Apache-2.0
// The vector type of AVX-512 without VBMI2 that expands bf16 and bytes as they are stored, by
// permutes whose controls are computed for a slice of 16 words.
//
// A nibble of a word has 16 values, and `vpermd` looks 16 of them up at once in a table of 16
// lanes: four bytes that say where the columns' values lie among the nibble's. What lies before the
// nibble is added, from counts that are made for eight words at a time. A word's 64 columns then
// take, in slots of ports 0 and 5,
//
//   bf16: 12 (1 shift, 1 look-up, 2 counts, 2 to 16 bits, 6 `vpermi2w`) + 4 to widen + 4 products
//   int8:  8 (2 look-up, 2 counts, 3 parts of 16 bytes, 1 `vpshufb`) + 8 to widen + 4 products
//
// and about 2 for the counts, where `vpexpandd` after widening takes 26.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/simd/vector_x86_avx512ordered.h"

namespace sparsekern {
namespace {

// Controls of byte shuffles and permutes.
struct SliceTables {
  alignas(64) uint8_t halves[64];   // [nibble][column]: kept, 32 + its rank; pruned, 0
  alignas(64) uint8_t bytes[64];    // [nibble][column]: kept, its rank; pruned, the sign bit
  alignas(64) uint8_t repeat[64];   // four times each of 16 bytes
  alignas(64) uint8_t turn[64];     // the same, in the order of HalfSlice's nibbles
  alignas(64) uint8_t to16[2][64];  // the words of the lower and of the upper half
};
constexpr SliceTables MakeSliceTables() {
  SliceTables t = {};
  for (int bits = 0; bits < 16; ++bits) {
    int rank = 0;
    for (int c = 4 * bits; c < 4 * bits + 4; ++c) {
      const bool kept = (bits >> c % 4 & 1) != 0;
      t.halves[c] = static_cast<uint8_t>(kept ? 32 + rank : 0);
      t.bytes[c] = static_cast<uint8_t>(kept ? rank : 128);
      rank += kept ? 1 : 0;
    }
  }
  for (int i = 0; i < 64; ++i) {
    const int nibble = i / 8 + i / 4 % 2 * 8;
    t.repeat[i] = static_cast<uint8_t>(i / 4);
    t.turn[i] = static_cast<uint8_t>(nibble % 2 * 8 + nibble / 2);
    for (int half = 0; half < 2; ++half) {
      const int word = i / 2 % 8;
      t.to16[half][i] = static_cast<uint8_t>(i % 2 == 0 ? word / 4 * 8 + half * 4 + word % 4 : 128);
    }
  }
  return t;
}
constexpr SliceTables kSliceTables = MakeSliceTables();

inline __m512i SliceTable(const uint8_t* table) { return _mm512_load_si512(table); }

// Of eight words, in bytes: the nibbles, lower and upper of each byte, and how many bits they have.
struct SliceNibbles {
  explicit SliceNibbles(const uint64_t* words) {
    const __m512i v = _mm512_loadu_si512(words);
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i counts =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    low = _mm512_and_si512(v, nibble);
    high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    in_low = _mm512_shuffle_epi8(counts, low);
    in_both = _mm512_add_epi8(in_low, _mm512_shuffle_epi8(counts, high));
  }
  __m512i low, high, in_low, in_both;
};

// 16 bytes for each of 16 words, which come eight words at a time: every other word from one
// vector, the others from the next.
struct SliceBytes {
  void Store(int half, __m512i even, __m512i odd) {
    _mm512_store_si512(bytes + 128 * half, even);
    _mm512_store_si512(bytes + 128 * half + 64, odd);
  }
  __m128i operator[](int r) const {
    const uint8_t* p = bytes + (r & 8) * 16 + (r & 1) * 64 + (r & 6) * 8;
    return _mm_load_si128(reinterpret_cast<const __m128i*>(p));
  }
  alignas(64) uint8_t bytes[256];
};

// Slices of bf16. The halves of a word are expanded one by one, each from a vector of values: an
// index of six bits takes one of these or, below 32, a zero.
class HalfSlice {
 public:
  struct Controls {
    __m512i v[2];
  };
  struct Values {
    __m512i v[2];
  };

  explicit HalfSlice(const uint64_t* words) : words_(words) {
    for (int half = 0; half < 2; ++half) {
      const SliceNibbles n(words + 8 * half);
      __m512i upto = _mm512_add_epi8(n.in_both, _mm512_slli_epi32(n.in_both, 8));
      upto = _mm512_add_epi8(upto, _mm512_slli_epi32(upto, 16));
      const __m512i low = _mm512_slli_epi32(upto, 8), high = _mm512_add_epi8(low, n.in_low);
      before_.Store(half, _mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    }
    asm volatile("" : : "r"(this) : "memory");  // parts of memory come back without a shuffle
  }
  Controls ControlsOf(int r) const {
    const uint64_t* word = words_ + r;
    asm("" : "+r"(word));  // to vectors from memory: from a general register takes port 5
    const __m512i to_nibble = _mm512_setr_epi64(0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i nibbles =
        _mm512_srlv_epi64(_mm512_set1_epi64(static_cast<int64_t>(*word)), to_nibble);
    const __m512i ranks = _mm512_permutexvar_epi32(nibbles, SliceTable(kSliceTables.halves));
    const __m512i before =
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(before_[r]), SliceTable(kSliceTables.turn));
    const __m512i at = _mm512_add_epi8(ranks, before);
    return {{_mm512_shuffle_epi8(at, SliceTable(kSliceTables.to16[0])),
             _mm512_shuffle_epi8(at, SliceTable(kSliceTables.to16[1]))}};
  }
  // Moves p behind the word's values.
  Values Expand(const Controls& controls, int r, const uint8_t** p) const {
    const uint8_t* middle = *p + 2 * Count(words_[r] & 0xffffffff);
    const __m512i zero = _mm512_setzero_si512();
    const Values values = {
        {_mm512_permutex2var_epi16(zero, controls.v[0], _mm512_loadu_si512(*p)),
         _mm512_permutex2var_epi16(zero, controls.v[1], _mm512_loadu_si512(middle))}};
    *p = middle + 2 * Count(words_[r] >> 32);
    return values;
  }
  static void Widen(const Values& values, __m512 (&out)[4]) {
    Avx512Ordered::WidenBF16(values.v[0], out);
    Avx512Ordered::WidenBF16(values.v[1], out + 2);
  }

 private:
  static int64_t Count(uint64_t bits) { return __builtin_popcountll(bits); }

  const uint64_t* words_;
  SliceBytes before_;
};

// Slices of int8. A byte shuffle stays in its 16 bytes, so each 16 columns get their own values.
class ByteSlice {
 public:
  using Controls = __m512i;
  using Values = __m512i;

  explicit ByteSlice(const uint64_t* words) {
    for (int half = 0; half < 2; ++half) {
      const SliceNibbles n(words + 8 * half);
      const __m512i low = _mm512_slli_epi16(n.in_both, 8), high = _mm512_add_epi8(low, n.in_low);
      before_.Store(half, _mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high));
      nibbles_.Store(half, _mm512_unpacklo_epi8(n.low, n.high),
                     _mm512_unpackhi_epi8(n.low, n.high));
      __m512i upto = _mm512_maddubs_epi16(n.in_both, _mm512_set1_epi8(1));
      upto = _mm512_add_epi16(upto, _mm512_slli_epi64(upto, 16));
      upto = _mm512_add_epi16(upto, _mm512_slli_epi64(upto, 32));
      _mm512_store_si512(upto_[8 * half], upto);
    }
    asm volatile("" : : "r"(this) : "memory");  // as above
  }
  Controls ControlsOf(int r) const {
    const __m512i ranks =
        _mm512_permutexvar_epi32(_mm512_cvtepu8_epi32(nibbles_[r]), SliceTable(kSliceTables.bytes));
    return _mm512_add_epi8(ranks, _mm512_shuffle_epi8(_mm512_broadcast_i32x4(before_[r]),
                                                      SliceTable(kSliceTables.repeat)));
  }
  Values Expand(const Controls& controls, int r, const uint8_t** p) const {
    const auto part = [&](int64_t at) __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(*p + at));
    };
    __m512i v = _mm512_castsi128_si512(part(0));
    v = _mm512_inserti32x4(v, part(upto_[r][0]), 1);
    v = _mm512_inserti32x4(v, part(upto_[r][1]), 2);
    v = _mm512_inserti32x4(v, part(upto_[r][2]), 3);
    *p += upto_[r][3];
    return _mm512_shuffle_epi8(v, controls);
  }
  static void Widen(const Values& values, __m512 (&out)[4]) {
    Avx512Ordered::WidenBytes(values, out);
  }

 private:
  SliceBytes before_, nibbles_;
  alignas(64) uint16_t upto_[16][4];  // values up to the end of each 16 columns
};

struct Avx512Slices : Avx512Ordered {
  template <DType D>
    requires(D == DType::kBF16 || D == DType::kI8)
  using Slice = std::conditional_t<D == DType::kI8, ByteSlice, HalfSlice>;
};

}  // namespace
}  // namespace sparsekern
