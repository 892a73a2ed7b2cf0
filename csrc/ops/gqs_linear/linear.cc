// SPDX-License-Identifier: Apache-2.0
// y = activation(x W^T + bias) for a group-quantized sparse matrix W: the decode kernel for a few
// rows of x, weights made fp32 and multiplied tile by tile for more.
//
// Decode is split by tasks, equal numbers of kept groups in a row or across rows, so that rows of
// unequal density load threads equally. Tasks are the matrix's, not the threads': a row is summed
// in the same pieces, and these in the same order, whatever the number of threads.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "base/linear_driver.h"
#include "ops/gqs_linear/kernels.h"
#include "sparsekern/gqs_linear.h"

namespace sparsekern {
namespace {

constexpr char kOp[] = "gqs_linear";

constexpr int kUnitBytes = kGqsUnit * 4;  // of a row of x, fp32
constexpr int kMaskWord = 16;             // groups
// Decode: scales and offsets are made for so many units, whole parts of rows, before the products.
// Row by row the processor would wait at each row's end.
constexpr int kRunUnits = 512;
constexpr int kRunParts = 32;
constexpr int kBlockMost = 16;  // units of a block
// What a run may hold: a part may begin at the last unit, be as long as a task, and be filled up.
constexpr int kRunBuffer =
    kRunUnits + int{kGqsTaskUnits} + 2 * kBlockMost * (kRunParts + 1) + int{kGqsSlack};
// Batch: columns that a step takes at once (with 64 rows of x 32 KB) and rows of W that meet them.
constexpr int kBlockCols = 128;
constexpr int kPanelRows = 64;
constexpr int kBlockUnits = kBlockCols / kGqsUnit;

int64_t PaddedCols(const GqsStructure& s) { return s.words * kMaskWord * s.group; }

const uint8_t* MaskOf(const GqsStructure& s, int64_t row) { return s.mask + 2 * row * s.words; }

// Scales, or zero-points, of groups `first` and on as fp32; `left`: groups from there to the last,
// so that whole vectors are converted wherever they exist.
void ExpandScales(const TileKernels& tiles, const GqsMatrix& w, int64_t base, int64_t first,
                  int64_t count, int64_t left, float* out) {
  const int64_t n = std::min((count + kGqsSlack - 1) / kGqsSlack * kGqsSlack, left);
  const uint8_t* from =
      static_cast<const uint8_t*>(w.scale) + static_cast<size_t>(base + first) * SizeOf(w.kind);
  if (w.kind == GqsScale::kU8) {
    for (int64_t i = 0; i < n; ++i) out[i] = from[i];
  } else {
    tiles.expand[static_cast<int>(w.kind)](from, n, out);
  }
}

// A number for each group of a task.
constexpr int kGroupBuffer = int{kGqsTaskUnits} + int{kGqsSlack};

// --- decode -------------------------------------------------------------------------------------

// x as the decode kernels take it: chunks of `rows` rows, each [padded columns / 16 + 1][rows][16].
struct DecodeX {
  DecodeX(const GqsKernels& kernels, const GqsMatrix& w, int64_t x_rows)
      : index(WidthIndex(kernels, w, x_rows)),
        rows(kGqsRows[index]),
        chunks(static_cast<int>((x_rows + rows - 1) / rows)),
        stride((PaddedCols(w.structure) + kGqsUnit) * rows),  // a unit of zeros at the end
        data(stride * chunks) {}

  static int WidthIndex(const GqsKernels& kernels, const GqsMatrix& w, int64_t x_rows) {
    const auto& dot = kernels.dot[GqsBitsIndex(w.structure.bits)][w.structure.zeros];
    int index = 0;
    while (kGqsRows[index] < x_rows && index + 1 < kGqsWidths && dot[index + 1] != nullptr) ++index;
    return index;
  }

  // `row`: PaddedCols floats, with more than one row.
  void Fill(const TileKernels& tiles, const LinearArgs& a, int64_t cols, float* row) const {
    const int dtype = static_cast<int>(a.dtype);
    std::memset(data.data(), 0, sizeof(float) * static_cast<size_t>(stride * chunks));
    for (int64_t m = 0; m < a.x_rows; ++m) {
      float* to = data.data() + m / rows * stride + m % rows * kGqsUnit;
      if (rows == 1) {
        tiles.expand[dtype](RowAt(a, m), cols, to);
        continue;
      }
      tiles.expand[dtype](RowAt(a, m), cols, row);
      for (int64_t k = 0; k < cols; k += kGqsUnit) {
        const int64_t n = std::min<int64_t>(kGqsUnit, cols - k);
        std::memcpy(to + k * rows, row + k, static_cast<size_t>(n) * sizeof(float));
      }
    }
  }

  int index, rows, chunks;
  int64_t stride;
  Scratch data;
};

// What a decode thread needs.
struct DecodeScratch {
  DecodeScratch()
      : offset(kRunBuffer),
        scale(kRunBuffer),
        zero(kRunBuffer),
        group(kGroupBuffer),
        group_scale(kGroupBuffer) {
    // A mask that keeps less than its row's offsets say leaves some as they were.
    if (ok()) {
      std::memset(offset.data(), 0, sizeof(uint32_t) * kRunBuffer);
      std::memset(group.data(), 0, sizeof(uint32_t) * kGroupBuffer);
    }
  }
  bool ok() const {
    return offset.data() != nullptr && scale.data() != nullptr && zero.data() != nullptr &&
           group.data() != nullptr && group_scale.data() != nullptr;
  }

  Scratch offset, scale, zero;  // a number a unit
  Scratch group, group_scale;   // offsets and scales, a number a group: never one for the other
};

// Makes the parts of runs of a task.
class RunMaker {
 public:
  RunMaker(const GqsKernels& kernels, const GqsMatrix& w, const DecodeX& x,
           const DecodeScratch& scratch)
      : kernels_(kernels),
        w_(w),
        s_(w.structure),
        k_(s_.units_per_group()),
        k_shift_(std::countr_zero(static_cast<unsigned>(k_))),
        block_shift_(std::countr_zero(static_cast<unsigned>(s_.units_per_block()))),
        step_(static_cast<uint32_t>(kUnitBytes * x.rows)),
        nothing_(static_cast<uint32_t>(PaddedCols(s_) / kGqsUnit) * step_),
        scratch_(scratch) {}

  // Groups first to until of a row, at `at` in the arrays; returns where they end, blocks filled
  // up.
  int Add(int64_t row, int64_t first, int64_t until, int at, GqsPart* part) const {
    const int64_t unit = first << k_shift_;
    const int fields = 1 << block_shift_, before = static_cast<int>(unit & (fields - 1));
    const int begin = at + before, end = begin + static_cast<int>((until - first) << k_shift_);
    const int whole = at + ((end - at + fields - 1) & -fields);
    auto* offsets = reinterpret_cast<uint32_t*>(scratch_.offset.data());
    auto* groups = reinterpret_cast<uint32_t*>(scratch_.group.data());
    kernels_.offsets(MaskOf(s_, row), s_.words, first - s_.row_ptr(row), until - first, step_ * k_,
                     k_ == 1 ? offsets + begin : groups);
    if (k_ > 1) kernels_.repeat_offset(groups, until - first, k_, step_, offsets + begin);
    std::fill(offsets + at, offsets + begin, nothing_);
    std::fill(offsets + end, offsets + whole, nothing_);
    PutScales(0, first, until, at, begin, end, whole, scratch_.scale.data());
    if (s_.zeros) {
      PutScales(s_.groups, first, until, at, begin, end, whole, scratch_.zero.data());
    }
    *part = {unit >> block_shift_, (whole - at) >> block_shift_, at};
    return whole;
  }

 private:
  void PutScales(int64_t base, int64_t first, int64_t until, int at, int begin, int end, int whole,
                 float* out) const {
    float* to = k_ == 1 ? out + begin : scratch_.group_scale.data();
    ExpandScales(kernels_.tiles, w_, base, first, until - first, s_.groups - first, to);
    if (k_ > 1) kernels_.repeat(to, until - first, k_, out + begin);
    std::fill(out + at, out + begin, 0.0f);
    std::fill(out + end, out + whole, 0.0f);
  }

  const GqsKernels& kernels_;
  const GqsMatrix& w_;
  const GqsStructure& s_;
  int k_;
  int k_shift_, block_shift_;  // divisions took a quarter of the time
  uint32_t step_;
  uint32_t nothing_;  // offset of a unit of zeros in x
  const DecodeScratch& scratch_;
};

// Products of a task's rows with x; put(row, first kept group, chunk, sums of the chunk's rows).
template <typename Put>
void DecodeTask(const GqsKernels& kernels, const GqsMatrix& w, int64_t task, const DecodeX& x,
                const DecodeScratch& scratch, const Put& put) {
  const GqsStructure& s = w.structure;
  const RunMaker maker(kernels, w, x, scratch);
  const GqsDotFn dot = kernels.dot[GqsBitsIndex(s.bits)][s.zeros][x.index];
  const int64_t end = std::min(s.groups, (task + 1) * s.task_groups);
  int64_t row = s.task_row(task);
  for (int64_t g = task * s.task_groups; g < end;) {
    GqsPart parts[kRunParts];
    int64_t rows[kRunParts], firsts[kRunParts];
    int count = 0, at = 0;
    for (; g < end && count < kRunParts && at < kRunUnits; ++row) {
      const int64_t until = std::min(end, s.row_ptr(row + 1));
      if (until == g) continue;
      rows[count] = row;
      firsts[count] = g;
      at = maker.Add(row, g, until, at, &parts[count++]);
      g = until;
    }
    const GqsRun run{w.values,
                     reinterpret_cast<const uint32_t*>(scratch.offset.data()),
                     scratch.scale.data(),
                     s.zeros ? scratch.zero.data() : nullptr,
                     parts,
                     count};
    for (int chunk = 0; chunk < x.chunks; ++chunk) {
      float sums[kRunParts * kGqsRows[kGqsWidths - 1]];
      dot(run, reinterpret_cast<const uint8_t*>(x.data.data() + chunk * x.stride), sums);
      for (int i = 0; i < count; ++i) put(rows[i], firsts[i], chunk, sums + i * x.rows);
    }
  }
}

Status Decode(const GqsKernels& kernels, const GqsMatrix& w, const LinearArgs& a,
              const float* row_scale, const ParallelFor& parallel_for) {
  const GqsStructure& s = w.structure;
  const TileKernels& tiles = kernels.tiles;
  const DecodeX x(kernels, w, a.x_rows);
  const Scratch row(x.rows > 1 ? s.cols : 0);
  const Scratch sums(s.rows * a.x_rows);
  // A task's first row, where it began in an earlier one.
  const int64_t held = static_cast<int64_t>(x.rows) * x.chunks;
  const Scratch carried(s.tasks * held);
  if (x.data.data() == nullptr || row.data() == nullptr || sums.data() == nullptr ||
      carried.data() == nullptr) {
    return OutOfScratch(kOp);
  }
  x.Fill(tiles, a, s.cols, row.data());
  std::memset(sums.data(), 0, sizeof(float) * static_cast<size_t>(s.rows * a.x_rows));
  std::atomic<bool> failed{false};
  // Tasks are equal in kept groups, not in time: sparse rows cost more a group. So threads take
  // them a few at a time (halves of 4096 x 4096 with densities from 0.9 to 0.09 left one idle for a
  // quarter of the time).
  const int64_t parts = std::min<int64_t>(parallel_for.threads, s.tasks);
  const int64_t few = parts > 1 ? std::max<int64_t>(1, s.tasks / (parts * 16)) : s.tasks;
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t t_begin, int64_t t_end, const DecodeScratch& scratch) {
    for (int64_t t = t_begin; t < t_end; ++t) {
      const int64_t first = t * s.task_groups;
      DecodeTask(kernels, w, t, x, scratch,
                 [&](int64_t r, int64_t group, int chunk, const float* y) {
                   const bool carry = group == first && s.row_ptr(r) < first;
                   const int64_t m = static_cast<int64_t>(chunk) * x.rows;
                   const int64_t count = std::min<int64_t>(x.rows, a.x_rows - m);
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
    const DecodeScratch scratch;
    if (!scratch.ok()) {
      failed = true;
      return;
    }
    for (int64_t t; (t = next.fetch_add(few)) < s.tasks;) {
      run(t, std::min(s.tasks, t + few), scratch);
    }
  });
  if (failed) return OutOfScratch(kOp);
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

// --- batch --------------------------------------------------------------------------------------

// What a batch thread needs for one x tile.
struct BatchScratch {
  BatchScratch(const GqsStructure& s, int width)
      : x((PaddedCols(s) + kBlockCols) * width),
        y(kPanelRows * width),
        scale(kPanelRows * s.row_groups + kGqsSlack),
        zero(s.zeros ? kPanelRows * s.row_groups + kGqsSlack : 0) {}
  bool ok() const {
    return x.data() != nullptr && y.data() != nullptr && scale.data() != nullptr &&
           zero.data() != nullptr;
  }

  Scratch x, y, scale, zero;
};

// Sums of rows first to until: scratch.y[rows][width].
void BatchPanel(const GqsKernels& kernels, const GqsMatrix& w, int64_t first, int64_t until,
                int width_index, const BatchScratch& scratch) {
  const GqsStructure& s = w.structure;
  const int k = s.units_per_group();
  const int width = kernels.tiles.widths[width_index];
  const int per_block = kBlockCols / s.group;  // groups: 1 to 8, so that a byte holds their bits
  const int64_t begin = s.row_ptr(first), count = s.row_ptr(until) - begin;
  if (count > 0) {
    ExpandScales(kernels.tiles, w, 0, begin, count, s.groups - begin, scratch.scale.data());
    if (s.zeros) {
      ExpandScales(kernels.tiles, w, s.groups, begin, count, s.groups - begin, scratch.zero.data());
    }
  }
  std::memset(scratch.y.data(), 0, sizeof(float) * static_cast<size_t>((until - first) * width));
  int64_t next[kPanelRows];  // the first kept group of each row that was not met yet
  for (int64_t r = first; r < until; ++r) next[r - first] = s.row_ptr(r);
  const GqsExpandFn expand = kernels.expand[GqsBitsIndex(s.bits)][s.zeros];
  for (int64_t block = 0; block * kBlockCols < s.cols; ++block) {
    const int64_t bit = block * per_block;
    const float* x = scratch.x.data() + block * kBlockCols * width;
    for (int64_t r = first; r < until; ++r) {
      uint32_t kept = MaskOf(s, r)[bit / 8] >> (bit % 8) & ((1u << per_block) - 1);
      if (kept == 0) continue;
      const int64_t g = next[r - first];
      // Never beyond the row, whatever the mask says.
      const int n = std::min<int>(std::popcount(kept), static_cast<int>(s.row_ptr(r + 1) - g));
      next[r - first] += n;
      uint8_t column[kBlockUnits];
      float scale[kBlockUnits], zero[kBlockUnits], weights[kBlockUnits * kGqsUnit];
      for (int i = 0; i < n; ++i, kept &= kept - 1) {
        const int at = std::countr_zero(kept) * s.group;
        for (int j = 0; j < k; ++j) {
          column[i * k + j] = static_cast<uint8_t>(at + j * kGqsUnit);
          scale[i * k + j] = scratch.scale.data()[g - begin + i];
          if (s.zeros) zero[i * k + j] = scratch.zero.data()[g - begin + i];
        }
      }
      expand(
          GqsUnits{w.values, g * k, static_cast<int64_t>(n) * k, scale, s.zeros ? zero : nullptr},
          weights);
      kernels.batch[width_index](weights, column, n * k, x, scratch.y.data() + (r - first) * width);
    }
  }
}

Status Batch(const GqsKernels& kernels, const GqsMatrix& w, const LinearArgs& a,
             const float* row_scale, const ParallelFor& parallel_for) {
  const GqsStructure& s = w.structure;
  const int64_t panels = (s.rows + kPanelRows - 1) / kPanelRows;
  // The panel at which the kept groups of a part begin.
  const auto cut = [&](int64_t part, int64_t parts) {
    if (part == parts) return panels;
    const int64_t before = s.groups * part / parts;
    int64_t low = 0, high = panels;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      s.row_ptr(middle * kPanelRows) < before ? low = middle + 1 : high = middle;
    }
    return low;
  };
  // A weight beyond cols, which is 0 before its zero-point, must add nothing, so there are zeros.
  const BatchOf of{kOp,        row_scale,         s.rows, s.cols, PaddedCols(s) + kBlockCols,
                   kPanelRows, s.groups * s.group};
  return RunBatch(
      of, kernels.tiles, XTiles(kernels.tiles.widths, a.x_rows), a, parallel_for, cut,
      [&](int width) { return BatchScratch(s, width); },
      [&](int64_t first, int64_t n, int width_index, BatchScratch* scratch) {
        BatchPanel(kernels, w, first, first + n, width_index, *scratch);
      });
}

}  // namespace

const GqsKernels& SelectGqsKernels(IsaMask mask) {
#define SPARSEKERN_GQS_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kGqsKernels_##isa_suffix;
#include "ops/gqs_linear/kernels.inc"
#undef SPARSEKERN_GQS_KERNELS
  return kGqsKernels_scalar;
}

std::string GqsLinearKernelName(const GqsMatrix& w, int64_t x_rows, IsaMask mask) {
  const GqsKernels& kernels = SelectGqsKernels(mask);
  return "gqs_linear_w" + std::to_string(w.structure.bits) + "g" +
         std::to_string(w.structure.group) +
         (x_rows <= kernels.max_decode_rows ? "_decode__" : "_batch__") + kernels.tiles.isa_name;
}

Status GqsLinear(const GqsMatrix& w, const LinearArgs& args, const ParallelFor& parallel_for) {
  const GqsStructure& s = w.structure;
  SPARSEKERN_RETURN_IF_ERROR(CheckLinear(kOp, args, s.rows, s.cols));
  if (!IsValid(w.kind)) return Status::InvalidType("gqs_linear: scale has an unknown dtype");
  if (s.row_scale != (w.kind == GqsScale::kU8)) {
    return Status::InvalidType(
        "gqs_linear: scale must be 8 bits where rows have a factor, and only there");
  }
  if (args.int8_x) return Status::InvalidValue("gqs_linear: there is no product with int8_x");
  if (args.x_rows == 0) return Status::Ok();
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const Scratch row_scale(s.row_scale ? s.rows : 0);  // aligned
  if (row_scale.data() == nullptr) return OutOfScratch(kOp);
  if (s.row_scale) {
    std::memcpy(row_scale.data(), s.row_scale_bytes, 4 * static_cast<size_t>(s.rows));
  }
  const float* factors = s.row_scale ? row_scale.data() : nullptr;
  const GqsKernels& kernels = SelectGqsKernels(mask);
  return args.x_rows <= kernels.max_decode_rows ? Decode(kernels, w, args, factors, parallel_for)
                                                : Batch(kernels, w, args, factors, parallel_for);
}

}  // namespace sparsekern
