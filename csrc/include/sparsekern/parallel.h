// SPDX-License-Identifier: Apache-2.0
// How a kernel is given threads. Kernels own none: they split their work into `n` parts and hand a
// body to the caller's ParallelFor. torch's operators pass torch's threads, C++ programs may use
// ThreadPool, WebAssembly passes Serial().
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace sparsekern {

struct ParallelFor {
  // Calls body(body_state, begin, end) over disjoint ranges that together cover [0, n) exactly
  // once, possibly at the same time from several threads, and returns when all are done. `body`
  // must not throw.
  void (*run)(void* state, int64_t n, void* body_state,
              void (*body)(void* body_state, int64_t begin, int64_t end));
  void* state;
  int threads;  // at most this many ranges run at a time; >= 1
};

static inline void RunSerially(void*, int64_t n, void* body_state,
                               void (*body)(void*, int64_t, int64_t)) {
  if (n > 0) body(body_state, 0, n);
}

// Everything on the calling thread.
static inline ParallelFor Serial() { return ParallelFor{&RunSerially, nullptr, 1}; }

// Calls f(begin, end) through `parallel_for`, for any callable.
template <typename F>
static inline void ForEachRange(const ParallelFor& parallel_for, int64_t n, F&& f) {
  if (n <= 0) return;
  parallel_for.run(parallel_for.state, n, const_cast<void*>(static_cast<const void*>(&f)),
                   [](void* state, int64_t begin, int64_t end) {
                     (*static_cast<std::remove_reference_t<F>*>(state))(begin, end);
                   });
}

#if !defined(__wasm__)
// A fixed set of std::threads for C++ programs. Several threads may use one pool at once and bodies
// may use it again: whoever finds the pool busy runs its own work serially, so nothing deadlocks.
class ThreadPool {
 public:
  // `threads` counts the caller; 0 takes all that the machine has. Where the system grants fewer,
  // the pool is smaller (see threads()).
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();  // no call may be in progress
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  // Valid as long as the pool lives.
  ParallelFor parallel_for();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};
#endif

}  // namespace sparsekern
