// SPDX-License-Identifier: Apache-2.0
// csr products of int8 x with AVX-512 VNNI.
#include <immintrin.h>

#include "ops/csr_spmm/generic_int8.h"

namespace sparsekern {
namespace {

// Four times four bytes side by side, within each 128-bit part.
void QuadOf(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint32_t* out) {
  const auto load = [](const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  };
  const __m128i low[2] = {_mm_unpacklo_epi8(load(a), load(b)), _mm_unpacklo_epi8(load(c), load(d))};
  const __m128i high[2] = {_mm_unpackhi_epi8(load(a), load(b)),
                           _mm_unpackhi_epi8(load(c), load(d))};
  __m128i* to = reinterpret_cast<__m128i*>(out);
  _mm_storeu_si128(to, _mm_unpacklo_epi16(low[0], low[1]));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low[0], low[1]));
  _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high[0], high[1]));
  _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high[0], high[1]));
}

struct Vnni64 {
  static constexpr int kPixels = 64, kLanes = 16;
  static constexpr uint32_t kOffset = 128;
  using Reg = __m512i;
  static Reg Set1(int32_t v) { return _mm512_set1_epi32(v); }
  static Reg Load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Reg LoadSums(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void StoreSums(int32_t* p, Reg v) { _mm512_storeu_si512(p, v); }
  static Reg Add(Reg a, Reg b) { return _mm512_add_epi32(a, b); }
  static Reg Dot(Reg sum, Reg codes, Reg w) { return _mm512_dpbusd_epi32(sum, codes, w); }
  static void Interleave(Reg a, Reg b, Reg c, Reg d, Reg (&out)[4]) {
    const Reg low_ab = _mm512_unpacklo_epi8(a, b), high_ab = _mm512_unpackhi_epi8(a, b);
    const Reg low_cd = _mm512_unpacklo_epi8(c, d), high_cd = _mm512_unpackhi_epi8(c, d);
    out[0] = _mm512_unpacklo_epi16(low_ab, low_cd);
    out[1] = _mm512_unpackhi_epi16(low_ab, low_cd);
    out[2] = _mm512_unpacklo_epi16(high_ab, high_cd);
    out[3] = _mm512_unpackhi_epi16(high_ab, high_cd);
  }
  // Packing works within 128-bit parts too, and so undoes what Interleave does to the order.
  static void StoreCodes(const float* x, const float* inverse, uint8_t* out) {
    const auto whole = [&](int i) {
      return _mm512_cvtps_epi32(
          _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(inverse + i)));
    };
    const Reg low = _mm512_packs_epi32(whole(0), whole(16));
    const Reg high = _mm512_packs_epi32(whole(32), whole(48));
    const Reg bytes = _mm512_packs_epi16(low, high);
    _mm512_storeu_si512(out, _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)));
  }
  static constexpr auto* Quad = QuadOf;
};

struct Vnni32 {
  static constexpr int kPixels = 32, kLanes = 8;
  static constexpr uint32_t kOffset = 128;
  using Reg = __m256i;
  static Reg Set1(int32_t v) { return _mm256_set1_epi32(v); }
  static Reg Load(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Reg LoadSums(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void StoreSums(int32_t* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  static Reg Add(Reg a, Reg b) { return _mm256_add_epi32(a, b); }
  static Reg Dot(Reg sum, Reg codes, Reg w) { return _mm256_dpbusd_epi32(sum, codes, w); }
  static void Interleave(Reg a, Reg b, Reg c, Reg d, Reg (&out)[4]) {
    const Reg low_ab = _mm256_unpacklo_epi8(a, b), high_ab = _mm256_unpackhi_epi8(a, b);
    const Reg low_cd = _mm256_unpacklo_epi8(c, d), high_cd = _mm256_unpackhi_epi8(c, d);
    out[0] = _mm256_unpacklo_epi16(low_ab, low_cd);
    out[1] = _mm256_unpackhi_epi16(low_ab, low_cd);
    out[2] = _mm256_unpacklo_epi16(high_ab, high_cd);
    out[3] = _mm256_unpackhi_epi16(high_ab, high_cd);
  }
  static void StoreCodes(const float* x, const float* inverse, uint8_t* out) {
    const auto whole = [&](int i) {
      return _mm256_cvtps_epi32(
          _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(inverse + i)));
    };
    const Reg low = _mm256_packs_epi32(whole(0), whole(8));
    const Reg high = _mm256_packs_epi32(whole(16), whole(24));
    const Reg bytes = _mm256_packs_epi16(low, high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)));
  }
  static constexpr auto* Quad = QuadOf;
};

template <int R>
constexpr Int8TileFn kNarrow = Int8Tile<Vnni32, R>;
template <int R>
constexpr Int8TileFn kWide = Int8Tile<Vnni64, R>;

}  // namespace

extern const CsrInt8Kernels kCsrInt8Kernels_x86_avx512vnni = {
    "x86_avx512vnni",
    {32, 64, 64, 64, 128},
    {Int8Codes<Vnni32>, Int8Codes<Vnni64>, Int8Codes<Vnni64>, Int8Codes<Vnni64>, Int8Codes<Vnni64>},
    {{kNarrow<1>, kWide<1>, kWide<1>, kWide<1>, kWide<1>},
     {kNarrow<2>, kWide<2>, kWide<2>, kWide<2>, kWide<2>},
     {kNarrow<4>, kWide<4>, kWide<4>, kWide<4>, kWide<4>}},
    Int8Rescale};

}  // namespace sparsekern
