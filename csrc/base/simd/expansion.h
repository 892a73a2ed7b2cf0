// SPDX-License-Identifier: Apache-2.0
// Kept values under a bitmap: elements that lie one behind the other in memory go to the lanes
// whose bit is set, and the other lanes get 0. What the vector types offer for it is
//
//   Lanes                  which lanes are kept, as the instruction set likes to have it
//   LanesOf(bits)          from the low kLanes bits of `bits`; the others must be 0
//   Piece<i>(word)         from bits i * kLanes ... of the word at a pointer
//   Spread(v, lanes)       the next element of v in each kept lane, ascending; 0 elsewhere
//   FmaKept(a, b, c, l)    a * b + c in kept lanes and c in the others, whatever b holds there,
//                          where a is what Spread answers: 0 outside `l`
//   CountKept(bits)        how many of the low kLanes bits are set
//
// so that the next values of any dtype are Spread(LoadAs<V, D>(p, 0), lanes), and p then moves by
// CountKept. LoadAs reads kLanes elements, kept or not: memory behind the last must be readable.
//
// A vector type may have besides, for 64 columns at once,
//
//   SpreadWord<D>(p, word, out)  the values of dtype D from p on under the bits of a word, times
//                                1 / kWordScale<D>, in an order of columns that Arrange<D> puts x
//                                in
//
// with zeros that are multiplied, so that x must be finite and far from overflow. Or, where that is
// better prepared for 16 words that follow each other,
//
//   Slice<D>(words)              of 16 words, which stay where they are
//   .ControlsOf(r)               of word r, for
//   .Expand(controls, r, &p)     the word's values, which begin at p; moves p behind them
//   .Widen(values, out)          and what SpreadWord answers
//
// in three steps, so that those of different words can overlap.
//
// AVX-512 has an instruction for Spread (two slots of port 5, and one for the mask); the others
// permute with a control from a table, eight lanes a time with AVX2, four with NEON and
// WebAssembly.
#pragma once

#include <cstdint>
#include <utility>

#include "sparsekern/dtype.h"

namespace sparsekern {

// control[bits][lane]: the element that a kept lane takes; for the others the sign bit is set.
struct SpreadTable8 {
  alignas(64) int8_t control[256][8];
};
static constexpr SpreadTable8 MakeSpreadTable8() {
  SpreadTable8 table = {};
  for (int bits = 0; bits < 256; ++bits) {
    int8_t next = 0;
    for (int lane = 0; lane < 8; ++lane) {
      table.control[bits][lane] = (bits >> lane & 1) != 0 ? next++ : int8_t{-128};
    }
  }
  return table;
}

// The same for four lanes of four bytes each: bytes of the element, or 255, which is beyond.
struct SpreadTable4 {
  alignas(64) uint8_t control[16][16];
  uint8_t count[16];
};
static constexpr SpreadTable4 MakeSpreadTable4() {
  SpreadTable4 table = {};
  for (int bits = 0; bits < 16; ++bits) {
    int next = 0;
    for (int lane = 0; lane < 4; ++lane) {
      const bool kept = (bits >> lane & 1) != 0;
      for (int byte = 0; byte < 4; ++byte) {
        table.control[bits][4 * lane + byte] = static_cast<uint8_t>(kept ? 4 * next + byte : 255);
      }
      next += kept ? 1 : 0;
    }
    table.count[bits] = static_cast<uint8_t>(next);
  }
  return table;
}

static constexpr int kWordColumns = 64;  // of a bitmap's word
template <typename V>
static constexpr int kPieces = kWordColumns / V::kLanes;

// Calls f.template operator()<i>() for i = 0 .. N - 1.
template <int N, typename F>
static inline __attribute__((always_inline)) void Unroll(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (f.template operator()<i>(), ...);
  }(std::make_integer_sequence<int, N>());
}

template <typename V, DType D>
static constexpr bool kSpreadsWords = requires(const uint8_t* p, typename V::Reg (&out)[4]) {
  V::template SpreadWord<D>(p, uint64_t{}, out);
};

template <typename V, DType D>
static constexpr bool kSpreadsSlices = requires { typename V::template Slice<D>; };

template <typename V, int i>
static constexpr uint32_t PieceBits(uint64_t word) {
  return static_cast<uint32_t>(word >> (i * V::kLanes)) & ((1u << V::kLanes) - 1u);
}

}  // namespace sparsekern
