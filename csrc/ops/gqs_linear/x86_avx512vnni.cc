// SPDX-License-Identifier: Apache-2.0
// gqs_linear with x in int8, by AVX-512 VNNI.
//
// A dot product takes four neighbouring columns at once, but a 32-bit word of the format holds one
// column of many units: a byte shuffle and a word permutation turn a block into four units side by
// side (kPlanes times, by fields of a byte). Codes stay in the top bits of their bytes, where they
// keep their signs, and so are 2^(8 - bits) times too large; x is unsigned, 128 too large, which a
// dot product of 128 with the complement of the codes takes away again.
//
// Four rows of x: a dot product a unit, its sixteen sums being quads of columns times rows. (Half
// of 4096 x 4096: 1.5 ms, fp32 2.1. With one row, x gathered 16 bytes a unit, it was no faster than
// fp32, and there is no kernel for it.)
//
// Sixteen rows: four dot products a unit, a sum a row, where fp32 takes sixteen multiply-adds. Here
// W is the unsigned side, 2^(bits - 1) too large, and what that adds to the products, a multiple of
// the sum of a group's codes of x, begins them: 16 integers before the 16 scales of a group of x.
// Between the four products the words of a unit of W rotate, so that lane i begins with word i % 4.
#include <immintrin.h>

#include <cstring>

#include "ops/gqs_linear/kernels.h"

namespace sparsekern {
namespace {

constexpr int kAhead = 2048;  // bytes of codes

template <int B>
struct Block {
  static constexpr int kPlanes = 8 / B;
  static constexpr int kUnits = 32 / B;
  static constexpr float kFactor = 1.0f / static_cast<float>(1 << (8 - B));

  // A block's bytes, byte b of the sixteen words in the b-th quarter.
  static __m512i Load(const uint8_t* values) {
    const __m512i bytes =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm_prefetch(reinterpret_cast<const char*>(values + kAhead), _MM_HINT_T0);
    return _mm512_permutexvar_epi32(words, _mm512_shuffle_epi8(_mm512_loadu_si512(values), bytes));
  }
  static __m512i Top() { return _mm512_set1_epi8(static_cast<char>(0xff << (8 - B))); }
  // Units i, kPlanes + i, 2 kPlanes + i, 3 kPlanes + i.
  static __m512i Plane(__m512i block, int i) {
    return _mm512_and_si512(_mm512_slli_epi16(block, static_cast<unsigned>(8 - B - B * i)), Top());
  }
  // -128 times the sums of four codes each.
  static __m512i Excess(__m512i plane) {
    // 128 times (-code - 2^(8 - B)), four of them, so much too little:
    const __m512i little = _mm512_set1_epi32(4 * 128 << (8 - B));
    return _mm512_dpbusd_epi32(little, _mm512_set1_epi8(static_cast<char>(128)),
                               _mm512_andnot_si512(plane, Top()));
  }
};

constexpr int kRows = kGqsInt8Rows;

// Where unit j of a block finds its group and its x; a group has 2^S units.
template <int B, int S>
struct UnitOf {
  static constexpr int kWithin = (1 << S) - 1;
  UnitOf(const GqsRun& run, const uint8_t* run_x, int unit)
      : offset(run.offset + (unit >> S)),
        scale(run.scale + (unit >> S)),
        // A block may be the latter half of a group.
        x(run_x + (unit & kWithin & -Block<B>::kUnits) * (16 * kRows)) {}
  const uint8_t* X(int j) const { return x + offset[j >> S] + (j & kWithin) * (16 * kRows); }

  const uint32_t* offset;
  const float* scale;
  const uint8_t* x;
};

template <int B, int S>
void DotRows(const GqsRun& run, const float* x_scale, const uint8_t* x, float* y) {
  using Of = Block<B>;
  constexpr int P = Of::kPlanes, kUnits = Of::kUnits;
  constexpr int kWithin = (1 << S) - 1;
  for (int part = 0; part < run.count; ++part, y += kRows) {
    const int begin = run.starts[part] << S, end = run.starts[part + 1] << S;
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};  // one would wait for itself
    __m512i dots = _mm512_setzero_si512();
    for (int unit = begin & -kUnits; unit < end; unit += kUnits) {
      const UnitOf<B, S> of(run, x, unit);
      const __m512i block = Of::Load(run.values + unit / kUnits * 64);
      __m512i plane[P], excess[P];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) {
        plane[i] = Of::Plane(block, i);
        excess[i] = Of::Excess(plane[i]);
      }
      const int lo = begin > unit ? begin - unit : 0;
      const int hi = end - unit < kUnits ? end - unit : kUnits;
#pragma GCC unroll 16
      for (int j = 0; j < kUnits; ++j) {
        if (j < lo || j >= hi) continue;
        const int quarter = j / P, first = 4 * quarter;
        const __m512i quads = _mm512_setr_epi32(
            first, first, first, first, first + 1, first + 1, first + 1, first + 1, first + 2,
            first + 2, first + 2, first + 2, first + 3, first + 3, first + 3, first + 3);
        const __m512i over = _mm512_permutexvar_epi32(quads, excess[j % P]);
        dots = S == 0 ? over : _mm512_add_epi32(dots, over);
        const __m512i w = _mm512_permutexvar_epi32(quads, plane[j % P]);
        dots = _mm512_dpbusd_epi32(dots, _mm512_loadu_si512(of.X(j)), w);
        if (((unit + j) & kWithin) != kWithin) continue;
        const float* scales = x_scale + (of.offset[j >> S] >> (4 + S));
        const __m512 rows = _mm512_broadcast_f32x4(_mm_loadu_ps(scales));
        __m512& sum = sums[(j >> S) % 2];
        // Scales first: the sum of a group times that of x alone may be beyond fp32.
        const __m512 both = _mm512_mul_ps(rows, _mm512_set1_ps(of.scale[j >> S]));
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), both, sum);
        if (S != 0) dots = _mm512_setzero_si512();
      }
    }
    const __m512 sum = _mm512_mul_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_set1_ps(Of::kFactor));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
}

template <int B>
void Dot(const GqsRun& run, const float* x_scale, const uint8_t* x, float* y) {
  run.shift == 0   ? DotRows<B, 0>(run, x_scale, x, y)
  : run.shift == 1 ? DotRows<B, 1>(run, x_scale, x, y)
  : run.shift == 2 ? DotRows<B, 2>(run, x_scale, x, y)
                   : DotRows<B, 3>(run, x_scale, x, y);
}

// The scale of a group of x; *inverse multiplies instead of dividing by it.
float Step(const float* row, int group, __m512* inverse) {
  __m512 most = _mm512_setzero_ps(), odd = most;
  for (int i = 0; i < group; i += 16) {
    const __m512 v = _mm512_loadu_ps(row + i);
    most = _mm512_max_ps(_mm512_abs_ps(v), most);
    odd = _mm512_fmadd_ps(v, _mm512_setzero_ps(), odd);  // not 0 if something is not finite
  }
  const float largest = _mm512_reduce_max_ps(most);
  const bool nothing = !(largest > 0x1p-100f);  // as Int8Scales (base/simd/quantization.h)
  const bool finite = _mm512_cmpeq_ps_mask(odd, _mm512_setzero_ps()) == 0xffff;
  *inverse = _mm512_set1_ps(nothing ? 0.0f : 127.0f / largest);
  return !finite ? __builtin_nanf("") : nothing ? 0.0f : largest / 127.0f;
}
// Of a unit of x: 32-bit integers, of which the low bytes are the codes.
__m512i Whole(const float* row, __m512 inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row), inverse));
}

void Quantize(const float* row, int64_t groups, int group, uint8_t* codes, float* scale) {
  for (int64_t g = 0; g < groups; ++g, row += group, codes += group) {
    __m512 inverse;
    scale[g] = Step(row, group, &inverse);
    for (int i = 0; i < group; i += 16) {
      _mm_storeu_si128(
          reinterpret_cast<__m128i*>(codes + i),
          _mm_xor_si128(_mm512_cvtepi32_epi8(Whole(row + i, inverse)), _mm_set1_epi8(-128)));
    }
  }
}

// --- sixteen rows -------------------------------------------------------------------------------

constexpr int kHead = 2 * 4 * kGqsPanelRows;
constexpr int kUnitBytes = kGqsUnit * kGqsPanelRows;

template <int B>
void Codes(const uint8_t* values, int64_t blocks, uint8_t* codes) {
  constexpr int kPlanes = 8 / B;
  const __m512i field = _mm512_set1_epi8(static_cast<char>((1 << B) - 1));
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(1 << (B - 1)));
  for (int64_t block = 0; block < blocks; ++block, values += 64, codes += 64 * kPlanes) {
    const __m512i all = Block<B>::Load(values);
    __m512i p[kPlanes];  // units i, kPlanes + i, 2 kPlanes + i, 3 kPlanes + i
#pragma GCC unroll 4
    for (int i = 0; i < kPlanes; ++i) {
      const __m512i down = _mm512_srli_epi16(all, static_cast<unsigned>(B * i));
      p[i] = _mm512_ternarylogic_epi32(down, field, sign, 0x6a);  // (down & field) ^ sign
    }
    if constexpr (kPlanes == 2) {
      const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
      const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
      const __m512i first = p[0];
      p[0] = _mm512_permutex2var_epi64(first, low, p[1]);
      p[1] = _mm512_permutex2var_epi64(first, high, p[1]);
    } else if constexpr (kPlanes == 4) {  // transposed
      const __m512i a = _mm512_shuffle_i64x2(p[0], p[1], 0x44);
      const __m512i b = _mm512_shuffle_i64x2(p[2], p[3], 0x44);
      const __m512i c = _mm512_shuffle_i64x2(p[0], p[1], 0xee);
      const __m512i d = _mm512_shuffle_i64x2(p[2], p[3], 0xee);
      p[0] = _mm512_shuffle_i64x2(a, b, 0x88);
      p[1] = _mm512_shuffle_i64x2(a, b, 0xdd);
      p[2] = _mm512_shuffle_i64x2(c, d, 0x88);
      p[3] = _mm512_shuffle_i64x2(c, d, 0xdd);
    }
    for (int i = 0; i < kPlanes; ++i) _mm512_storeu_si512(codes + 64 * i, p[i]);
  }
}

// `sum` and group g, of 2^S units, times the rows of x.
template <int S>
inline __m512 AddGroup(const GqsRun& run, const uint8_t* codes, const uint8_t* x, int64_t g,
                       __m512 sum) {
  const uint8_t* xg = x + run.offset[g];
  const uint8_t* wg = codes + (g << S) * kGqsUnit;
  __m512i dots = _mm512_loadu_si512(xg), more = _mm512_setzero_si512();  // one waits for itself
#pragma GCC unroll 8
  for (int u = 0; u < 1 << S; ++u) {
    const uint8_t* xu = xg + kHead + u * kUnitBytes;
    const __m512i w0 = _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(wg + u * kGqsUnit)));
    const __m512i w1 = _mm512_shuffle_epi32(w0, _MM_PERM_ADCB);
    const __m512i w2 = _mm512_shuffle_epi32(w0, _MM_PERM_BADC);
    const __m512i w3 = _mm512_shuffle_epi32(w0, _MM_PERM_CBAD);
    dots = _mm512_dpbusd_epi32(dots, w0, _mm512_loadu_si512(xu));
    more = _mm512_dpbusd_epi32(more, w1, _mm512_loadu_si512(xu + 64));
    dots = _mm512_dpbusd_epi32(dots, w2, _mm512_loadu_si512(xu + 128));
    more = _mm512_dpbusd_epi32(more, w3, _mm512_loadu_si512(xu + 192));
  }
  // Scales first: the sum of a group times that of x alone may be beyond fp32.
  const __m512 both = _mm512_mul_ps(_mm512_loadu_ps(reinterpret_cast<const float*>(xg + 64)),
                                    _mm512_set1_ps(run.scale[g]));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(dots, more)), both, sum);
}

template <int S>
void PanelDot(const GqsRun& run, const uint8_t* codes, const uint8_t* x, uint32_t limit,
              const uint8_t* ahead, int bits, int* next, float* y) {
  const GqsRun r = run;  // nothing that is stored can be part of it
  const int64_t bytes = static_cast<int64_t>(2 * bits) << S;  // of a group, in `values`
  for (int part = 0; part < r.count; ++part, y += kGqsPanelRows) {
    int64_t g = next[part];
    const int64_t until = r.starts[part + 1];
    __m512 sum = _mm512_loadu_ps(y), other = _mm512_setzero_ps();
    for (; g + 1 < until && r.offset[g + 1] < limit; g += 2) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + g * bytes), _MM_HINT_T1);
      sum = AddGroup<S>(r, codes, x, g, sum);
      other = AddGroup<S>(r, codes, x, g + 1, other);
    }
    if (g < until && r.offset[g] < limit) sum = AddGroup<S>(r, codes, x, g++, sum);
    next[part] = static_cast<int>(g);
    _mm512_storeu_ps(y, _mm512_add_ps(sum, other));
  }
}

// Codes of four columns of row m are a lane.
void Pack(const float* row, int64_t groups, int group, int bits, int m, uint8_t* x) {
  for (int64_t g = 0; g < groups; ++g, row += group) {
    auto* begin = reinterpret_cast<int32_t*>(x) + m;
    __m512 inverse;
    reinterpret_cast<float*>(x)[kGqsPanelRows + m] = Step(row, group, &inverse);
    x += kHead;
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < group; i += kGqsUnit, x += kUnitBytes) {
      const __m128i codes = _mm512_cvtepi32_epi8(Whole(row + i, inverse));
      total = _mm512_add_epi32(total, _mm512_cvtepi8_epi32(codes));
      uint32_t quads[4];
      std::memcpy(quads, &codes, sizeof quads);
      for (int q = 0; q < 4; ++q) std::memcpy(x + 64 * q + 4 * m, &quads[(m + q) % 4], 4);
    }
    *begin = -_mm512_reduce_add_epi32(total) * (1 << (bits - 1));
  }
}

constexpr GqsPanelKernels kPanel = {kHead,
                                    {Codes<2>, Codes<4>, Codes<8>},
                                    {PanelDot<0>, PanelDot<1>, PanelDot<2>, PanelDot<3>},
                                    Pack};

}  // namespace

extern const GqsInt8Kernels kGqsInt8Kernels_x86_avx512vnni = {
    "x86_avx512vnni", {Dot<2>, Dot<4>, Dot<8>}, Quantize, &kPanel};

}  // namespace sparsekern
