// SPDX-License-Identifier: Apache-2.0
// gqs_linear for a few rows of x.
//
// The work is split by tasks, equal numbers of kept groups in a row or across rows, so that rows of
// unequal density load threads equally. Tasks are the matrix's, not the threads': a row is summed
// in the same pieces, and these in the same order, whatever the number of threads.
//
// Offsets and scales are made for a run of rows at once, a number a group, in the order in which
// the format has the groups.
#include <atomic>
#include <cstring>

#include "ops/gqs_linear/decode_x.h"

namespace sparsekern {
namespace {

// Groups of a run, about: with more of them their numbers push x out of the first-level cache (at
// 256 849 us, at 1024 909, for half of 4096 x 4096).
constexpr int kRunGroups = 128;
constexpr int kRunParts = 32;
// A part may begin at the last of them and be as long as a task.
constexpr int kRunBuffer = kRunGroups + int{kGqsTaskUnits} + int{kGqsSlack};

// What a decode thread needs.
class RunMaker {
 public:
  RunMaker(const GqsKernels& kernels, const GqsMatrix& w, const DecodeX& x)
      : kernels_(kernels),
        w_(w),
        s_(w.structure),
        shift_(GqsShift(s_)),
        chunk_shift_(GqsChunkShift(s_.bits, shift_)),
        step_(static_cast<uint32_t>(x.layout.unit_bytes) << shift_),
        offset_(kRunBuffer),
        scale_(kRunBuffer),
        zero_(s_.zeros ? kRunBuffer : 0) {
    // A mask that keeps less than its row's offsets say leaves some as they were.
    if (ok()) std::memset(offset_.data(), 0, sizeof(uint32_t) * kRunBuffer);
  }
  bool ok() const {
    return offset_.data() != nullptr && scale_.data() != nullptr && zero_.data() != nullptr;
  }

  // What follows of groups *g to end, *row being the row of the first; moves both on.
  GqsRun Make(int64_t* row, int64_t* g, int64_t end) {
    const int64_t base = *g >> chunk_shift_ << chunk_shift_;
    auto* offsets = reinterpret_cast<uint32_t*>(offset_.data());
    int count = 0;
    for (; *g < end && count < kRunParts && *g - base < kRunGroups; ++*row) {
      const int64_t first = *g, begin = s_.row_ptr(*row);
      const int64_t until = std::min(end, s_.row_ptr(*row + 1));
      if (until == first) continue;
      kernels_.offsets(MaskOf(s_, *row), s_.words, first - begin, until - first, step_,
                       offsets + (first - base));
      rows[count] = *row;
      firsts[count] = first;
      starts_[count++] = static_cast<int>(first - base);
      *g = until;
    }
    starts_[count] = static_cast<int>(*g - base);
    ExpandScales(kernels_.tiles, w_, 0, base, *g - base, scale_.data());
    if (s_.zeros) ExpandScales(kernels_.tiles, w_, s_.groups, base, *g - base, zero_.data());
    return {w_.values + ((base << shift_) >> GqsBlockShift(s_.bits)) * 64,
            offsets,
            scale_.data(),
            s_.zeros ? zero_.data() : nullptr,
            starts_,
            count,
            shift_};
  }

  int64_t rows[kRunParts], firsts[kRunParts];  // of the parts: the row, the first kept group

 private:
  const GqsKernels& kernels_;
  const GqsMatrix& w_;
  const GqsStructure& s_;
  int shift_, chunk_shift_;  // log2 of the units of a group, of the groups of a chunk
  uint32_t step_;            // bytes of a group of x
  Scratch offset_, scale_, zero_;
  int starts_[kRunParts + 1];
};

// Products of a task's rows with x; put(row, first kept group, chunk, sums of the chunk's rows).
template <typename Put>
void DecodeTask(const GqsStructure& s, int64_t task, const DecodeX& x, RunMaker* maker,
                const Put& put) {
  const int64_t end = std::min(s.groups, (task + 1) * s.task_groups);
  int64_t row = s.task_row(task);
  for (int64_t g = task * s.task_groups; g < end;) {
    const GqsRun run = maker->Make(&row, &g, end);
    for (int chunk = 0; chunk < x.layout.chunks; ++chunk) {
      float sums[kRunParts * kGqsMostRows];
      x.Dot(run, chunk, sums);
      for (int i = 0; i < run.count; ++i) {
        put(maker->rows[i], maker->firsts[i], chunk, sums + i * x.layout.rows);
      }
    }
  }
}

}  // namespace

Status GqsDecode(const GqsKernels& kernels, const GqsInt8Kernels* int8, const GqsMatrix& w,
                 const LinearArgs& a, const float* row_scale, const ParallelFor& parallel_for) {
  const GqsStructure& s = w.structure;
  const TileKernels& tiles = kernels.tiles;
  const DecodeX x(kernels, int8, w, a);
  const Scratch sums(s.rows * a.x_rows);
  // A task's first row, where it began in an earlier one.
  const int64_t held = static_cast<int64_t>(x.layout.rows) * x.layout.chunks;
  const Scratch carried(s.tasks * held);
  if (!x.ok() || sums.data() == nullptr || carried.data() == nullptr) return OutOfScratch(kGqsOp);
  x.Fill();
  std::memset(sums.data(), 0, sizeof(float) * static_cast<size_t>(s.rows * a.x_rows));
  std::atomic<bool> failed{false};
  // Tasks are equal in kept groups, not in time: sparse rows cost more a group. So threads take
  // them a few at a time (halves of 4096 x 4096 with densities from 0.9 to 0.09 left one idle for a
  // quarter of the time).
  const int64_t parts = std::min<int64_t>(parallel_for.threads, s.tasks);
  const int64_t few = parts > 1 ? std::max<int64_t>(1, s.tasks / (parts * 16)) : s.tasks;
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t t_begin, int64_t t_end, RunMaker* maker) {
    for (int64_t t = t_begin; t < t_end; ++t) {
      const int64_t first = t * s.task_groups;
      DecodeTask(s, t, x, maker, [&](int64_t r, int64_t group, int chunk, const float* y) {
        const bool carry = group == first && s.row_ptr(r) < first;
        const int64_t m = static_cast<int64_t>(chunk) * x.layout.rows;
        const int64_t count = std::min<int64_t>(x.layout.rows, a.x_rows - m);
        for (int64_t i = 0; i < count; ++i) {
          if (carry) {
            carried.data()[t * held + m + i] = y[i];
          } else {
            sums.data()[(m + i) * s.rows + r] = y[i];
          }
        }
      });
    }
  };
  ForEachRange(parallel_for, parts, [&](int64_t, int64_t) {
    RunMaker maker(kernels, w, x);
    if (!maker.ok()) {
      failed = true;
      return;
    }
    for (int64_t t; (t = next.fetch_add(few)) < s.tasks;) {
      run(t, std::min(s.tasks, t + few), &maker);
    }
  });
  if (failed) return OutOfScratch(kGqsOp);
  for (int64_t t = 0; t < s.tasks; ++t) {
    const int64_t r = s.task_row(t);
    if (s.row_ptr(r) == t * s.task_groups) continue;
    for (int64_t m = 0; m < a.x_rows; ++m) {
      sums.data()[m * s.rows + r] += carried.data()[t * held + m];
    }
  }
  ForEachRange(parallel_for, a.x_rows, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      StoreRow(tiles, a, row_scale, m, 0, s.rows, sums.data() + m * s.rows);
    }
  });
  return Status::Ok();
}

}  // namespace sparsekern
