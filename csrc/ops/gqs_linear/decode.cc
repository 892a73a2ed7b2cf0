// SPDX-License-Identifier: Apache-2.0
// gqs_linear for a few rows of x.
//
// The work is split by tasks, equal numbers of kept groups in a row or across rows, so that rows of
// unequal density load threads equally. Tasks are the matrix's, not the threads': a row is summed
// in the same pieces, and these in the same order, whatever the number of threads.
//
// Offsets and scales are made for a run of rows at once, a number a group, in the order in which
// the format has the groups. A panel kernel has a larger run's codes as bytes too.
#include <atomic>
#include <cstring>

#include "ops/gqs_linear/decode_x.h"

namespace sparsekern {
namespace {

// Groups of a run, about: with more of them their numbers push x out of the first-level cache (at
// 256 849 us, at 1024 909, for half of 4096 x 4096).
constexpr int kRunGroups = 128;
constexpr int kRunParts = 32;
// With panel kernels a run is a few tasks, since each of them fetches x into the first-level cache
// again, and a piece of the columns has at most so many bytes of x. (Half of 4096 x 4096 and
// sixteen rows of x: 2.8 ms with 24 or 32 KB, 2.9 with 48, 3.4 in one piece; with few groups a row,
// where a piece's end costs more than its x, 48 KB are a tenth faster.)
constexpr int kPanelUnits = 4 * kGqsTaskUnits;
constexpr int kPanelParts = 128;
constexpr uint32_t kPanelBytes = 32 * 1024;

// Runs of kept groups: positions and scales, a number a group.
class RunMaker {
 public:
  RunMaker(const GqsKernels& kernels, const GqsMatrix& w, const DecodeXLayout& x)
      : kernels_(kernels),
        w_(w),
        s_(w.structure),
        shift_(GqsShift(s_)),
        chunk_shift_(GqsChunkShift(s_.bits, shift_)),
        most_groups_(x.panel != nullptr ? kPanelUnits >> shift_ : kRunGroups),
        most_parts_(x.panel != nullptr ? kPanelParts : kRunParts),
        step_(static_cast<uint32_t>(x.group_bytes)),
        // A part may begin at the last of them and be as long as a task.
        room_(most_groups_ + int{kGqsTaskUnits} + int{kGqsSlack}),
        offset_(room_),
        scale_(room_),
        zero_(s_.zeros ? room_ : 0) {
    // A mask that keeps less than its row's offsets say leaves some as they were.
    if (ok()) std::memset(offset_.data(), 0, sizeof(uint32_t) * static_cast<size_t>(room_));
  }
  bool ok() const {
    return offset_.data() != nullptr && scale_.data() != nullptr && zero_.data() != nullptr;
  }

  // Runs begin with this task.
  void Begin(int64_t first_task) {
    task_ = first_task;
    group_ = first_task * s_.task_groups;
    row_ = s_.task_row(first_task);
  }
  bool Done(int64_t end) const { return group_ >= end; }
  // Whether another run may have too many parts, before `parts` is 0 again.
  bool Full() const { return parts + most_parts_ > kPanelParts; }

  // What follows of the groups before `end`, where a task ends. A part is within a task.
  GqsRun Make(int64_t end) {
    const int64_t base = group_ >> chunk_shift_ << chunk_shift_;
    auto* offsets = reinterpret_cast<uint32_t*>(offset_.data());
    int64_t task_begin = task_ * s_.task_groups;
    int count = 0;
    while (group_ < end && count < most_parts_ && group_ - base < most_groups_) {
      if (group_ == task_begin + s_.task_groups) {
        ++task_;
        task_begin = group_;
      }
      const int64_t begin = s_.row_ptr(row_), row_end = s_.row_ptr(row_ + 1);
      const int64_t until = std::min({end, task_begin + s_.task_groups, row_end});
      if (until > group_) {
        kernels_.offsets(MaskOf(s_, row_), s_.words, group_ - begin, until - group_, step_,
                         offsets + (group_ - base));
        rows[parts + count] = row_;
        task[parts + count] = begin < group_ && group_ == task_begin ? task_ : -1;
        starts_[count++] = static_cast<int>(group_ - base);
        group_ = until;
      }
      if (until == row_end) ++row_;
    }
    starts_[count] = static_cast<int>(group_ - base);
    parts += count;
    ExpandScales(kernels_.tiles, w_, 0, base, group_ - base, scale_.data());
    if (s_.zeros) ExpandScales(kernels_.tiles, w_, s_.groups, base, group_ - base, zero_.data());
    return {w_.values + ((base << shift_) >> GqsBlockShift(s_.bits)) * 64,
            offsets,
            scale_.data(),
            s_.zeros ? zero_.data() : nullptr,
            starts_,
            count,
            shift_};
  }

  int parts = 0;  // of the runs that were made
  int64_t rows[kPanelParts];
  int64_t task[kPanelParts];  // that begins with the part, in the midst of the row; or -1

 private:
  const GqsKernels& kernels_;
  const GqsMatrix& w_;
  const GqsStructure& s_;
  int64_t task_ = 0, group_ = 0, row_ = 0;  // where the next run begins
  int shift_, chunk_shift_;  // log2 of the units of a group, of the groups of a chunk
  int most_groups_, most_parts_;
  uint32_t step_;  // bytes of a group of x
  int room_;
  Scratch offset_, scale_, zero_;
  int starts_[kPanelParts + 1];
};

// Sums of a run's parts with chunk after chunk of x, by panel kernels.
class PanelSums {
 public:
  PanelSums(const DecodeXLayout& x, const GqsStructure& s)
      : x_(x),
        s_(s),
        // A run's groups may begin and end within blocks.
        codes_(x.panel != nullptr ? (kPanelUnits + kGqsTaskUnits + 64) * kGqsUnit / 4 : 0) {}
  bool ok() const { return codes_.data() != nullptr; }

  // The codes of what follows.
  void Begin(const GqsRun& run) {
    const int64_t units = static_cast<int64_t>(run.starts[run.count]) << run.shift;
    const int shift = GqsBlockShift(s_.bits);
    const int64_t blocks = (units + (int64_t{1} << shift) - 1) >> shift;
    x_.panel->codes[GqsBitsIndex(s_.bits)](run.values, blocks, codes());
    ahead_ = run.values + blocks * 64;
  }
  // sums[part][row]
  void Sums(const GqsRun& run, const uint8_t* x, float* sums) {
    const GqsPanelDotFn dot = x_.panel->dot[GqsShift(s_)];
    std::memset(sums, 0, sizeof(float) * static_cast<size_t>(run.count * kGqsPanelRows));
    std::memcpy(next_, run.starts, sizeof(int) * static_cast<size_t>(run.count));
    for (int64_t limit = kPanelBytes; limit < x_.stride; limit += kPanelBytes) {
      dot(run, codes(), x, static_cast<uint32_t>(limit), ahead_, s_.bits, next_, sums);
    }
    dot(run, codes(), x, UINT32_MAX, ahead_, s_.bits, next_, sums);
  }

 private:
  uint8_t* codes() const { return reinterpret_cast<uint8_t*>(codes_.data()); }

  const DecodeXLayout& x_;
  const GqsStructure& s_;
  Scratch codes_;
  const uint8_t* ahead_ = nullptr;
  int next_[kPanelParts];
};

// What a decode thread needs.
struct DecodeThread {
  DecodeThread(const GqsKernels& kernels, const GqsMatrix& w, const DecodeXLayout& x)
      : maker(kernels, w, x), panel(x, w.structure) {}
  bool ok() const { return maker.ok() && panel.ok(); }

  RunMaker maker;
  PanelSums panel;
};

// Products of the rows of tasks with x; put(the maker of some runs, chunk, y) where y[part] are the
// sums of the chunk's rows.
template <typename Put>
void DecodeTasks(const GqsStructure& s, int64_t begin, int64_t until, const DecodeX& x,
                 DecodeThread* thread, const Put& put) {
  alignas(64) float sums[kPanelParts * kGqsMostRows];
  const int64_t end = std::min(s.groups, until * s.task_groups);
  RunMaker& maker = thread->maker;
  maker.Begin(begin);
  while (!maker.Done(end)) {
    const int before = maker.parts;
    const GqsRun run = maker.Make(end);
    if (x.layout.panel != nullptr) thread->panel.Begin(run);
    for (int chunk = 0; chunk < x.layout.chunks; ++chunk) {
      float* y = sums + (chunk * kPanelParts + before) * x.layout.rows;
      if (x.layout.panel != nullptr) {
        thread->panel.Sums(run, x.Chunk(chunk), y);
      } else {
        x.Dot(run, chunk, y);
      }
    }
    if (!maker.Full() && !maker.Done(end)) continue;
    for (int chunk = 0; chunk < x.layout.chunks; ++chunk) {
      put(maker, chunk, sums + chunk * kPanelParts * x.layout.rows);
    }
    maker.parts = 0;
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
  SPARSEKERN_RETURN_IF_ERROR(x.Fill(parallel_for));
  std::memset(sums.data(), 0, sizeof(float) * static_cast<size_t>(s.rows * a.x_rows));
  std::atomic<bool> failed{false};
  // Tasks are equal in kept groups, not in time: with one row of x a row of W costs as much as 40
  // groups more, whatever it keeps (4096 columns; halves of 4096 x 4096 with densities from 0.9 to
  // 0.09 left one thread idle for a quarter of the time). So threads take them a few at a time;
  // panel kernels more of them, as they do several tasks in one go.
  const int64_t parts = std::min<int64_t>(parallel_for.threads, s.tasks);
  const int64_t pieces = parts * (x.layout.panel != nullptr ? 16 : 64);
  const int64_t few = parts > 1 ? std::max<int64_t>(1, s.tasks / pieces) : s.tasks;
  std::atomic<int64_t> next{0};
  const auto put = [&](const RunMaker& of, int chunk, const float* y) {
    const int64_t m = static_cast<int64_t>(chunk) * x.layout.rows;
    const int64_t x_rows = std::min<int64_t>(x.layout.rows, a.x_rows - m);
    // Row after row of y: they may be a power of two apart, and so in one set of the cache.
    for (int64_t j = 0; j < x_rows; ++j) {
      float* to = sums.data() + (m + j) * s.rows;
      for (int i = 0; i < of.parts; ++i) {
        const float sum = y[i * x.layout.rows + j];
        if (of.task[i] < 0) {
          to[of.rows[i]] = sum;
        } else {
          carried.data()[of.task[i] * held + m + j] = sum;
        }
      }
    }
  };
  ForEachRange(parallel_for, parts, [&](int64_t, int64_t) {
    DecodeThread thread(kernels, w, x.layout);
    if (!thread.ok()) {
      failed = true;
      return;
    }
    for (int64_t t; (t = next.fetch_add(few)) < s.tasks;) {
      DecodeTasks(s, t, std::min(s.tasks, t + few), x, &thread, put);
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
