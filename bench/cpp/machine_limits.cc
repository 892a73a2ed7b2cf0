// SPDX-License-Identifier: Apache-2.0
// The machine's limits, for shares in the same run: reading memory in a stream, and multiply-adds
// on registers. A shared library that harness code in Python calls; it returns when the work is
// done.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

#if defined(__x86_64__)
#define SPARSEKERN_TARGET_512 __attribute__((target("avx512f,prefer-vector-width=512")))
#define SPARSEKERN_TARGET_256 __attribute__((target("avx2,fma")))
#endif
#define SPARSEKERN_TARGET_BASE

// Adds up `words` in four independent chains so that loads, not additions, are the limit.
#define SPARSEKERN_DEFINE(suffix, target, width)                                       \
  typedef uint64_t Words##suffix __attribute__((vector_size(width)));                  \
  typedef float Floats##suffix __attribute__((vector_size(width)));                    \
  target uint64_t Read##suffix(const char* data, size_t bytes, int streams) {          \
    const size_t part = bytes / streams / (4 * width) * (4 * width);                   \
    Words##suffix a = {}, b = {}, c = {}, d = {};                                      \
    for (size_t at = 0; at < part; at += 4 * width) {                                  \
      for (int s = 0; s < streams; ++s) {                                              \
        const auto* in = reinterpret_cast<const Words##suffix*>(data + s * part + at); \
        a += in[0];                                                                    \
        b += in[1];                                                                    \
        c += in[2];                                                                    \
        d += in[3];                                                                    \
      }                                                                                \
    }                                                                                  \
    a += b + c + d;                                                                    \
    uint64_t sum = 0;                                                                  \
    for (size_t i = 0; i < width / 8; ++i) sum += a[i];                                \
    return sum;                                                                        \
  }                                                                                    \
  /* Twelve chains cover a latency of 4 to 6 cycles on two or three units. */          \
  target float Fma##suffix(int64_t steps) {                                            \
    Floats##suffix acc[12], x = {}, y = {};                                            \
    x += 0.999f;                                                                       \
    y += 0.001f;                                                                       \
    for (auto& a : acc) a = y;                                                         \
    for (int64_t i = 0; i < steps; ++i) {                                              \
      for (auto& a : acc) a = a * x + y;                                               \
      asm volatile("");                                                                \
    }                                                                                  \
    for (int i = 1; i < 12; ++i) acc[0] += acc[i];                                     \
    return acc[0][0];                                                                  \
  }

SPARSEKERN_DEFINE(Base, SPARSEKERN_TARGET_BASE, 16)
#if defined(__x86_64__)
SPARSEKERN_DEFINE(256, SPARSEKERN_TARGET_256, 32)
SPARSEKERN_DEFINE(512, SPARSEKERN_TARGET_512, 64)
#endif

int VectorBytes() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return 64;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
  return 16;
}

uint64_t Read(const char* data, size_t bytes, int streams) {
  switch (VectorBytes()) {
#if defined(__x86_64__)
    case 64: return Read512(data, bytes, streams);
    case 32: return Read256(data, bytes, streams);
#endif
    default: return ReadBase(data, bytes, streams);
  }
}

float Fma(int64_t steps) {
  switch (VectorBytes()) {
#if defined(__x86_64__)
    case 64: return Fma512(steps);
    case 32: return Fma256(steps);
#endif
    default: return FmaBase(steps);
  }
}

template <typename F>
void OnThreads(int threads, const F& body) {
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  body(0);
  for (std::thread& other : others) other.join();
}

volatile uint64_t g_sink;  // so that the compiler keeps the work

}  // namespace

extern "C" {

// Reads `bytes` at `data` (64-byte aligned) once, each thread its own stretch in `streams` streams.
void sparsekern_bench_read(const void* data, size_t bytes, int streams, int threads) {
  const size_t part = bytes / threads / 64 * 64;
  OnThreads(threads, [=](int t) {
    g_sink = Read(static_cast<const char*>(data) + t * part, part, streams);
  });
}

// Runs `steps` rounds of multiply-adds on each thread; returns the floating-point operations.
double sparsekern_bench_fma(int64_t steps, int threads) {
  OnThreads(threads, [=](int) { g_sink = static_cast<uint64_t>(Fma(steps)); });
  return 2.0 * 12 * (VectorBytes() / 4) * static_cast<double>(steps) * threads;
}

}  // extern "C"
