// SPDX-License-Identifier: Apache-2.0
// gqs_linear with x in int8, by AVX-512 VNNI.
//
// A dot product takes four neighbouring columns at once, but a 32-bit word of the format holds one
// column of many units: a byte shuffle and a word permutation turn a block into four units side by
// side (kPlanes times, by fields of a byte). Codes stay in the top bits of their bytes, where they
// keep their signs, and so are 2^(8 - bits) times too large; x is unsigned, 128 too large, which a
// dot product of 128 with the complement of the codes takes away again.
//
// Four rows of x: a dot product a unit, its sixteen sums being quads of columns times rows. Sixteen
// rows: four dot products a unit, a sum a row, where fp32 takes sixteen multiply-adds; x (20 bytes
// a column with its scales) comes from the second-level cache, which bounds it. (Half of 4096 x
// 4096, 4 and 16 rows: 1.5 and 3.9 ms, fp32 2.1 and 6.7. With one row, x gathered 16 bytes a unit,
// it was no faster than fp32, and there is no kernel for it.)
#include <immintrin.h>

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

// Where unit j of a block finds its group and its x; a group has 2^S units.
template <int B, int S, int M>
struct UnitOf {
  static constexpr int kWithin = (1 << S) - 1;
  UnitOf(const GqsRun& run, const uint8_t* run_x, int unit)
      : offset(run.offset + (unit >> S)),
        scale(run.scale + (unit >> S)),
        // A block may be the latter half of a group.
        x(run_x + (unit & kWithin & -Block<B>::kUnits) * (16 * M)) {}
  const uint8_t* X(int j) const { return x + offset[j >> S] + (j & kWithin) * (16 * M); }

  const uint32_t* offset;
  const float* scale;
  const uint8_t* x;
};

// Four rows of x: sums are columns' quads times rows. Sixteen: sums are rows.
template <int B, int S, int M>
void DotRows(const GqsRun& run, const float* x_scale, const uint8_t* x, float* y) {
  using Of = Block<B>;
  constexpr int P = Of::kPlanes, kUnits = Of::kUnits;
  constexpr int kWithin = (1 << S) - 1;
  for (int part = 0; part < run.count; ++part, y += M) {
    const int begin = run.starts[part] << S, end = run.starts[part + 1] << S;
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};  // one would wait for itself
    __m512i dots = _mm512_setzero_si512();
    for (int unit = begin & -kUnits; unit < end; unit += kUnits) {
      const UnitOf<B, S, M> of(run, x, unit);
      const __m512i block = Of::Load(run.values + unit / kUnits * 64);
      __m512i plane[P], excess[P];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) {
        plane[i] = Of::Plane(block, i);
        excess[i] = Of::Excess(plane[i]);
        if (M == 4) continue;
        excess[i] = _mm512_add_epi32(excess[i], _mm512_shuffle_epi32(excess[i], _MM_PERM_BADC));
        excess[i] = _mm512_add_epi32(excess[i], _mm512_shuffle_epi32(excess[i], _MM_PERM_CDAB));
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
        const __m512i over =
            _mm512_permutexvar_epi32(M == 4 ? quads : _mm512_set1_epi32(first), excess[j % P]);
        dots = S == 0 ? over : _mm512_add_epi32(dots, over);
        const uint8_t* xu = of.X(j);
        if constexpr (M == 16) {
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q) {
            const __m512i w = _mm512_permutexvar_epi32(_mm512_set1_epi32(first + q), plane[j % P]);
            dots = _mm512_dpbusd_epi32(dots, _mm512_loadu_si512(xu + q * 64), w);
          }
        } else {
          const __m512i w = _mm512_permutexvar_epi32(quads, plane[j % P]);
          dots = _mm512_dpbusd_epi32(dots, _mm512_loadu_si512(xu), w);
        }
        if (((unit + j) & kWithin) != kWithin) continue;
        const float* scales = x_scale + (of.offset[j >> S] >> (4 + S));
        const __m512 rows =
            M == 16 ? _mm512_loadu_ps(scales) : _mm512_broadcast_f32x4(_mm_loadu_ps(scales));
        __m512& sum = sums[(j >> S) % 2];
        // Scales first: the sum of a group times that of x alone may be beyond fp32.
        const __m512 both = _mm512_mul_ps(rows, _mm512_set1_ps(of.scale[j >> S]));
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), both, sum);
        if (S != 0) dots = _mm512_setzero_si512();
      }
    }
    const __m512 sum = _mm512_mul_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_set1_ps(Of::kFactor));
    if constexpr (M == 16) {
      _mm512_storeu_ps(y, sum);
    } else {
      const __m256 half =
          _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
      _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
    }
  }
}

template <int B, int M>
void Dot(const GqsRun& run, const float* x_scale, const uint8_t* x, float* y) {
  run.shift == 0   ? DotRows<B, 0, M>(run, x_scale, x, y)
  : run.shift == 1 ? DotRows<B, 1, M>(run, x_scale, x, y)
  : run.shift == 2 ? DotRows<B, 2, M>(run, x_scale, x, y)
                   : DotRows<B, 3, M>(run, x_scale, x, y);
}

void Quantize(const float* row, int64_t groups, int group, uint8_t* codes, float* scale) {
  for (int64_t g = 0; g < groups; ++g, row += group, codes += group) {
    __m512 most = _mm512_setzero_ps(), odd = most;
    for (int i = 0; i < group; i += 16) {
      const __m512 v = _mm512_loadu_ps(row + i);
      most = _mm512_max_ps(_mm512_abs_ps(v), most);
      odd = _mm512_fmadd_ps(v, _mm512_setzero_ps(), odd);  // not 0 if something is not finite
    }
    const float largest = _mm512_reduce_max_ps(most);
    const bool nothing = !(largest > 0x1p-100f);  // as Int8Scales (base/simd/quantization.h)
    const bool finite = _mm512_cmpeq_ps_mask(odd, _mm512_setzero_ps()) == 0xffff;
    scale[g] = !finite ? __builtin_nanf("") : nothing ? 0.0f : largest / 127.0f;
    const __m512 inverse = _mm512_set1_ps(nothing ? 0.0f : 127.0f / largest);
    for (int i = 0; i < group; i += 16) {
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + i), inverse));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i),
                       _mm_xor_si128(_mm512_cvtepi32_epi8(whole), _mm_set1_epi8(-128)));
    }
  }
}

}  // namespace

extern const GqsInt8Kernels kGqsInt8Kernels_x86_avx512vnni = {
    "x86_avx512vnni",
    {{Dot<2, 4>, Dot<2, 16>}, {Dot<4, 4>, Dot<4, 16>}, {Dot<8, 4>, Dot<8, 16>}},
    Quantize};

}  // namespace sparsekern
