// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#if !defined(__wasm__)
#include <thread>
#endif

namespace sparsekern {
namespace {

// How often each index of [0, n) was given to the body.
std::vector<int> Counts(const ParallelFor& parallel_for, int64_t n) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
  ForEachRange(parallel_for, n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
  });
  return std::vector<int>(seen.begin(), seen.end());
}

TEST(ParallelTest, SerialCoversEachIndexOnceInOneRange) {
  EXPECT_EQ(Serial().threads, 1);
  EXPECT_EQ(Counts(Serial(), 5), std::vector<int>(5, 1));
  int calls = 0;
  ForEachRange(Serial(), 0, [&](int64_t, int64_t) { ++calls; });
  ForEachRange(Serial(), -3, [&](int64_t, int64_t) { ++calls; });
  EXPECT_EQ(calls, 0);
  const auto constant = [&calls](int64_t, int64_t) { ++calls; };
  ForEachRange(Serial(), 9, constant);
  EXPECT_EQ(calls, 1);
}

#if !defined(__wasm__)
TEST(ThreadPoolTest, CoversEachIndexOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    EXPECT_EQ(pool.parallel_for().threads, threads);
    for (const int64_t n : {0, 1, 2, 3, 4, 5, 6, 7, 63, 64, 65, 1000}) {
      EXPECT_EQ(Counts(pool.parallel_for(), n), std::vector<int>(static_cast<size_t>(n), 1)) << n;
    }
  }
}

TEST(ThreadPoolTest, ManyJobsInARow) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  for (int job = 0; job < 5000; ++job) {
    ForEachRange(pool.parallel_for(), 3, [&](int64_t begin, int64_t end) { sum += end - begin; });
  }
  EXPECT_EQ(sum.load(), 15000);
}

TEST(ThreadPoolTest, UsesItsThreads) {
  ThreadPool pool(2);
  // Each range waits for the other: this ends only when both run at the same time.
  std::atomic<int> arrived{0};
  ForEachRange(pool.parallel_for(), 2, [&](int64_t begin, int64_t end) {
    ASSERT_EQ(end - begin, 1);
    ++arrived;
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

TEST(ThreadPoolTest, NestedUseRunsSerially) {
  ThreadPool pool(2);
  std::atomic<int> inner_ranges{0};
  std::atomic<int64_t> covered{0};
  ForEachRange(pool.parallel_for(), 2, [&](int64_t outer_begin, int64_t outer_end) {
    for (int64_t i = outer_begin; i < outer_end; ++i) {
      ForEachRange(pool.parallel_for(), 10, [&](int64_t begin, int64_t end) {
        ++inner_ranges;
        covered += end - begin;
      });
    }
  });
  EXPECT_EQ(inner_ranges.load(), 2);
  EXPECT_EQ(covered.load(), 20);
}

TEST(ThreadPoolTest, SeveralThreadsAtOnce) {
  ThreadPool pool(2);
  std::atomic<int64_t> covered{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int job = 0; job < 1000; ++job) {
        ForEachRange(pool.parallel_for(), 7,
                     [&](int64_t begin, int64_t end) { covered += end - begin; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(covered.load(), 3 * 1000 * 7);
}

TEST(ThreadPoolTest, RangesOfHugeCountsDoNotOverflow) {
  ThreadPool pool(3);
  const int64_t n = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> covered{0};
  std::atomic<bool> in_range{true};
  ForEachRange(pool.parallel_for(), n, [&](int64_t begin, int64_t end) {
    if (begin < 0 || begin >= end || end > n) in_range = false;
    covered += end - begin;
  });
  EXPECT_TRUE(in_range.load());
  EXPECT_EQ(covered.load(), n);
}
#endif

}  // namespace
}  // namespace sparsekern
