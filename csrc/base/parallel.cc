// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/parallel.h"

#if !defined(__wasm__)

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace sparsekern {

namespace {

// A sparse layer takes 10-1000 us and the next follows at once, while waking a sleeping thread
// takes about 50 us: so a thread looks this many times for work before it sleeps (some 10-50 us).
constexpr int kSpins = 2000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when `value` differs from `old`.
void WaitWhileEqual(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    Pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

struct ThreadPool::Impl {
  std::vector<std::thread> workers;
  std::atomic<bool> busy{false};
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> job{0};         // counts jobs; a change wakes the workers
  std::atomic<uint32_t> unfinished{0};  // workers still in the current job

  // The current job; written before `job` is counted up, read after.
  int64_t n = 0;
  void* body_state = nullptr;
  void (*body)(void*, int64_t, int64_t) = nullptr;

  int threads() const { return static_cast<int>(workers.size()) + 1; }

  // Range `part` of `threads()` nearly equal ones. The quotient and the remainder are taken apart
  // so that nothing overflows however large n is.
  void RunPart(int part) const {
    const int64_t each = n / threads();
    const int64_t longer = n % threads();
    const int64_t begin = each * part + (part < longer ? part : longer);
    const int64_t end = begin + each + (part < longer ? 1 : 0);
    if (begin < end) body(body_state, begin, end);
  }

  void Work(int part) {
    uint32_t seen = 0;
    for (;;) {
      WaitWhileEqual(job, seen);
      ++seen;
      if (stop.load(std::memory_order_relaxed)) return;
      RunPart(part);
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_one();
    }
  }

  static void Run(void* state, int64_t n, void* body_state, void (*body)(void*, int64_t, int64_t)) {
    if (n <= 0) return;
    Impl& pool = *static_cast<Impl*>(state);
    if (n == 1 || pool.workers.empty() || pool.busy.exchange(true, std::memory_order_acquire)) {
      body(body_state, 0, n);
      return;
    }
    pool.n = n;
    pool.body_state = body_state;
    pool.body = body;
    pool.unfinished.store(static_cast<uint32_t>(pool.workers.size()), std::memory_order_relaxed);
    pool.job.fetch_add(1, std::memory_order_release);
    pool.job.notify_all();
    pool.RunPart(0);
    for (uint32_t left; (left = pool.unfinished.load(std::memory_order_acquire)) != 0;) {
      WaitWhileEqual(pool.unfinished, left);
    }
    pool.busy.store(false, std::memory_order_release);
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  if (threads > 1) impl_->workers.reserve(static_cast<size_t>(threads) - 1);
  for (int part = 1; part < threads; ++part) {
    try {
      impl_->workers.emplace_back(&Impl::Work, impl_.get(), part);
    } catch (const std::system_error&) {
      break;  // the system grants no more threads; the pool works with those it has
    }
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true, std::memory_order_relaxed);
  impl_->job.fetch_add(1, std::memory_order_release);
  impl_->job.notify_all();
  for (std::thread& worker : impl_->workers) worker.join();
}

int ThreadPool::threads() const { return impl_->threads(); }

ParallelFor ThreadPool::parallel_for() {
  return ParallelFor{&Impl::Run, impl_.get(), impl_->threads()};
}

}  // namespace sparsekern

#endif  // !defined(__wasm__)
