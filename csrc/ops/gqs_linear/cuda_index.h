// SPDX-License-Identifier: Apache-2.0
// Index and bit arithmetic of the CUDA kernels of gqs_linear, as functions that the host compiles
// too: tests/cpp walks packed matrices with them, so that only instructions and launches need a GPU
// to be tested.
//
// The kernels read the format as it lies on disk (docs/formats.md). All that says how to read it,
// bits, group and tasks, is in the header on the device, and is read there: a call waits for
// nothing. Whatever the arrays hold, no index that is made here leaves them.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/cuda/tiles.h"
#include "sparsekern/gqs.h"

namespace sparsekern::cuda {

// The sizes that a call knows of a weight, without its header.
struct GqsSizes {
  int64_t rows, cols;
  int64_t value_bytes, structure_bytes, scale_count;
  GqsScale kind;
};

// What follows from a structure's header; `consistent` when it belongs to arrays of the given sizes
// and a matrix of the given shape. Sections are offsets into the structure.
struct GqsLayout {
  int64_t rows, cols;
  int64_t groups;                   // kept
  int64_t row_groups, mask_bytes;   // of a row
  int64_t task_row, mask, factors;  // where they begin; row offsets begin at 64
  int64_t tasks;
  int group_shift, unit_shift, bits;  // group = 1 << group_shift = 16 << unit_shift
  int block_shift;                    // 1 << block_shift units in a block
  int task_groups;
  bool zeros, row_factors, consistent;
};

constexpr int64_t kGqsHeaderBytes = 64;
constexpr int kGqsBlockBytes = 64;

SPARSEKERN_HOST_DEVICE int64_t GqsAligned(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }

// Where the sections of a matrix begin, and what else its numbers make; `consistent` says whether
// the arrays have its sizes. bits: 2, 4 or 8; group_shift: 4 to 7; no division is by a number of
// the header but for task_groups, which is not 0.
SPARSEKERN_HOST_DEVICE GqsLayout GqsLayoutOf(const GqsSizes& sizes, int bits, int group_shift,
                                             int64_t groups, int task_groups, bool zeros,
                                             bool row_factors) {
  GqsLayout s;
  s.rows = sizes.rows;
  s.cols = sizes.cols;
  s.groups = groups;
  s.bits = bits;
  s.group_shift = group_shift;
  s.unit_shift = group_shift - 4;
  s.block_shift = bits == 2 ? 4 : bits == 4 ? 3 : 2;
  s.task_groups = task_groups;
  s.zeros = zeros;
  s.row_factors = row_factors;
  s.row_groups = (sizes.cols + (int64_t{1} << group_shift) - 1) >> group_shift;
  s.mask_bytes = (s.row_groups + 15) >> 4 << 1;
  s.tasks = groups == 0 ? 0
                        : static_cast<int64_t>(static_cast<uint32_t>(groups - 1) /
                                               static_cast<uint32_t>(task_groups)) +
                              1;
  s.task_row = kGqsHeaderBytes + GqsAligned(4 * (sizes.rows + 1));
  s.mask = s.task_row + GqsAligned(4 * s.tasks);
  s.factors = s.mask + GqsAligned(sizes.rows * s.mask_bytes);
  const int64_t units = groups << s.unit_shift;
  const int64_t blocks = (units + (int64_t{1} << s.block_shift) - 1) >> s.block_shift;
  s.consistent =
      sizes.structure_bytes == s.factors + (row_factors ? GqsAligned(4 * sizes.rows) : 0) &&
      sizes.value_bytes == blocks * kGqsBlockBytes &&
      sizes.scale_count == (zeros ? 2 * groups : groups) &&
      row_factors == (sizes.kind == GqsScale::kU8) && !(zeros && row_factors);
  return s;
}

// From the header, read where it lies.
SPARSEKERN_HOST_DEVICE GqsLayout ReadGqsLayout(const uint8_t* structure, const GqsSizes& sizes) {
  uint64_t field[6];  // magic and version, rows, cols, group and bits, groups, task and flags
  memcpy(field, structure, sizeof field);
  const uint64_t group = field[3] & 0xffffffffu, bits = field[3] >> 32;
  const uint64_t task = field[5] & 0xffffffffu, flags = field[5] >> 32;
  const int shift = group == 32 ? 5 : group == 64 ? 6 : group == 128 ? 7 : 4;
  const bool known = (group == 16 || shift != 4) && (bits == 2 || bits == 4 || bits == 8) &&
                     field[4] < (uint64_t{1} << 32) && task >= 1 && flags <= 2 &&
                     task << (shift - 4) <= uint64_t{kGqsTaskUnits};
  GqsLayout s = GqsLayoutOf(sizes, known ? static_cast<int>(bits) : 8, shift,
                            known ? static_cast<int64_t>(field[4]) : 0,
                            known ? static_cast<int>(task) : 1, (flags & 1) != 0, (flags & 2) != 0);
  s.consistent = s.consistent && known && field[0] == 0x0000000151474b53u /* SKGQ, version 1 */ &&
                 field[1] == static_cast<uint64_t>(sizes.rows) &&
                 field[2] == static_cast<uint64_t>(sizes.cols) &&
                 s.groups <= sizes.rows * s.row_groups;
  return s;
}

SPARSEKERN_HOST_DEVICE uint32_t GqsWord(const uint8_t* structure, int64_t at) {
  uint32_t v;
  memcpy(&v, static_cast<const uint8_t*>(__builtin_assume_aligned(structure + at, 4)), 4);
  return v;
}
// Kept groups before a row, at most all of them.
SPARSEKERN_HOST_DEVICE int64_t GqsRowStart(const GqsLayout& s, const uint8_t* structure,
                                           int64_t row) {
  const int64_t v = GqsWord(structure, kGqsHeaderBytes + 4 * row);
  return v < s.groups ? v : s.groups;
}
// The row in which a task begins.
SPARSEKERN_HOST_DEVICE int64_t GqsTaskRow(const GqsLayout& s, const uint8_t* structure,
                                          int64_t task) {
  const int64_t row = GqsWord(structure, s.task_row + 4 * task);
  return row < s.rows ? row : s.rows - 1;
}

// Eight groups' bits of a row's mask, those beyond the last group cleared.
SPARSEKERN_HOST_DEVICE uint32_t GqsMaskByte(const GqsLayout& s, const uint8_t* structure,
                                            int64_t row, int64_t byte) {
  const uint32_t bits = structure[s.mask + row * s.mask_bytes + byte];
  const int64_t left = s.row_groups - byte * 8;
  return left >= 8 ? bits : left <= 0 ? 0 : bits & ((1u << left) - 1);
}

SPARSEKERN_HOST_DEVICE float GqsFloat(uint32_t bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

// Field `field` of B bits of a word, signed. Its bits are put into the mantissa of a power of two
// of which the lowest of them is the unit, so that one subtraction leaves the number: no shift for
// the fields that fit, and no conversion, of which a multiprocessor makes few.
template <int B>
SPARSEKERN_HOST_DEVICE float GqsCode(uint32_t word, int field) {
  constexpr int kFit = 23 / B;  // fields in a mantissa
  const int at = field % kFit * B;
  const uint32_t in = word >> (field / kFit * kFit * B);
  const uint32_t exponent = static_cast<uint32_t>(127 + 23 - at) << 23;
  constexpr uint32_t kOnes = (1u << B) - 1, kSign = 1u << (B - 1);
  const float v = GqsFloat((in & (kOnes << at)) ^ (exponent | kSign << at));
  return v - GqsFloat(exponent | kSign << at);
}

// The same where bits and field are known at run time.
SPARSEKERN_HOST_DEVICE float GqsCodeOf(uint32_t word, int bits, int field) {
  const uint32_t sign = 1u << (bits - 1), ones = 2 * sign - 1;
  constexpr uint32_t kExponent = static_cast<uint32_t>(127 + 23) << 23;
  const float v = GqsFloat(((word >> (field * bits)) & ones) ^ (kExponent | sign));
  return v - GqsFloat(kExponent | sign);
}

// --- decode -------------------------------------------------------------------------------------

constexpr int kGqsWarps = 16;
constexpr int kGqsThreads = kGqsWarps * 32;
constexpr int kGqsQuads = kGqsThreads / 4;  // four threads have the 16 columns of a unit
// Units of a task, and of the parts of blocks at its ends.
constexpr int kGqsMostUnits = kGqsTaskUnits + 2 * 16;
// Of x, at a time: four bytes of shared memory a column and row of x.
constexpr int kGqsDecodeRowsAtOnce = 4;

// Of the blocks that hold a task's units the first and the last may hold units of other tasks.
struct GqsTask {
  int64_t first_group, end_group;
  int64_t first_block;  // of the matrix
  int blocks;
  int begin, end;  // units of the task, counted from the first of first_block
};
SPARSEKERN_HOST_DEVICE GqsTask GqsTaskOf(const GqsLayout& s, int64_t task) {
  GqsTask t;
  t.first_group = task * s.task_groups;
  t.end_group = t.first_group + s.task_groups;
  if (t.end_group > s.groups) t.end_group = s.groups;
  const int64_t first = t.first_group << s.unit_shift, end = t.end_group << s.unit_shift;
  t.first_block = first >> s.block_shift;
  t.blocks = static_cast<int>(((end - 1) >> s.block_shift) - t.first_block) + 1;
  t.begin = static_cast<int>(first - (t.first_block << s.block_shift));
  t.end = static_cast<int>(end - (t.first_block << s.block_shift));
  return t;
}

struct GqsRange {
  int64_t begin, end;
};
// The tasks of block `block` of `blocks` blocks of threads.
SPARSEKERN_HOST_DEVICE GqsRange GqsTasksOf(int64_t tasks, int block, int blocks) {
  const int64_t each = static_cast<uint32_t>(tasks) / static_cast<uint32_t>(blocks);
  const int64_t more = tasks - each * blocks;  // that take one more
  const int64_t begin = each * block + (block < more ? block : more);
  return GqsRange{begin, begin + each + (block < more ? 1 : 0)};
}
// The first block of threads whose tasks begin at `task` or later; `blocks` if none does.
SPARSEKERN_HOST_DEVICE int GqsFirstBlock(int64_t tasks, int blocks, int64_t task) {
  if (task > tasks) return blocks;
  const int64_t each = static_cast<uint32_t>(tasks) / static_cast<uint32_t>(blocks);
  const int64_t more = tasks - each * blocks;
  if (task <= more * (each + 1)) return static_cast<int>((task + each) / (each + 1));
  return static_cast<int>(more + (task - more * (each + 1) + each - 1) / each);
}

// The blocks of a task that quad `quad` walks through, one after the other.
SPARSEKERN_HOST_DEVICE GqsRange GqsStrand(int blocks, int quad) {
  return GqsRange{blocks * quad / kGqsQuads, blocks * (quad + 1) / kGqsQuads};
}

// What a quad must know of a unit, made for a whole task at once: `at` is where the unit's columns
// of x begin in shared memory, in floats, and its highest bit says that a row begins here.
struct alignas(8) GqsEntry {
  uint32_t at;
  float scale;
};
constexpr uint32_t kGqsRowBegins = 0x80000000u;
// Where the entry of a unit lies: the quads of a warp are 8, 16 or 32 units apart, and are not to
// meet in a bank. Within a block it is a constant more than for the block's first unit.
SPARSEKERN_HOST_DEVICE int GqsEntryAt(int unit) { return unit + (unit >> 3); }
constexpr int kGqsEntries = kGqsMostUnits + kGqsMostUnits / 8;

// The bytes of the masks that a thread turns into entries, kGqsThreads apart, from a row on.
struct GqsMaskCursor {
  int64_t row;
  int byte;
};
SPARSEKERN_HOST_DEVICE GqsMaskCursor GqsFirstByte(const GqsLayout& s, int64_t row, int thread) {
  const int bytes = static_cast<int>(s.mask_bytes);
  return GqsMaskCursor{row + thread / bytes, thread % bytes};
}
SPARSEKERN_HOST_DEVICE GqsMaskCursor GqsNextByte(const GqsLayout& s, GqsMaskCursor at) {
  const int bytes = static_cast<int>(s.mask_bytes);
  at.row += kGqsThreads / bytes;
  at.byte += kGqsThreads % bytes;
  if (at.byte >= bytes) {
    at.byte -= bytes;
    ++at.row;
  }
  return at;
}

// x in shared memory: for each unit of columns `slots` times 16 floats, one after the other the
// rows of x, or with one row that row once or twice; after the last unit one of zeros. Of two quads
// that are served in the same cycle one reads from the lower, one from the upper half of the banks:
// they take the rows of x in another order, or one of the two copies each.
SPARSEKERN_HOST_DEVICE int64_t GqsUnitsOfX(const GqsLayout& s) {
  return s.row_groups << s.unit_shift;
}
// Where a unit begins in it, and a column is.
SPARSEKERN_HOST_DEVICE uint32_t GqsUnitAt(int64_t unit, int slots) {
  return static_cast<uint32_t>(unit) * static_cast<uint32_t>(slots * kGqsUnit);
}
SPARSEKERN_HOST_DEVICE int GqsColumnAt(int column, int slots) {
  return static_cast<int>(GqsUnitAt(column / kGqsUnit, slots)) + column % kGqsUnit;
}
// The row of x that is the i-th of a quad.
SPARSEKERN_HOST_DEVICE int GqsRowOfX(int i, int quad, int rows_of_x) {
  return rows_of_x == 1 ? 0 : i ^ (quad & 1);
}
// Floats from the beginning of a unit to it.
SPARSEKERN_HOST_DEVICE int GqsSlot(int i, int quad, int slots) {
  return slots == 1 ? 0 : (i ^ (quad & 1)) * kGqsUnit;
}

// The entries of the groups that a byte of a mask keeps, `bits`: `group` is the number of the first
// among the kept ones, row_start that with which the row begins. Nothing but units of the task is
// written.
SPARSEKERN_HOST_DEVICE void GqsPutEntries(const GqsLayout& s, const GqsTask& t, GqsMaskCursor at,
                                          uint32_t bits, int64_t group, int64_t row_start,
                                          int slots, GqsEntry* entry, int* row) {
  for (int i = 0; bits != 0; ++i, bits >>= 1) {
    if ((bits & 1) == 0) continue;
    if (group >= t.first_group && group < t.end_group) {
      const int64_t of_x = int64_t{at.byte * 8 + i} << s.unit_shift;
      const int unit = t.begin + (static_cast<int>(group - t.first_group) << s.unit_shift);
      for (int j = 0; j < 1 << s.unit_shift; ++j) {
        entry[GqsEntryAt(unit + j)].at = GqsUnitAt(of_x + j, slots);
      }
      if (group == row_start) {
        entry[GqsEntryAt(unit)].at |= kGqsRowBegins;
        row[GqsEntryAt(unit)] = static_cast<int>(at.row);
      }
    }
    ++group;
  }
}

// Sums of rows as a block of threads meets them, warp by warp and task by task: what a warp has of
// the row that is open (`lead`), and, where a row begins in it, of the last of these (`tail`).
// put(row, sum) takes each row that is done, row -1 being the one that began in an earlier block.
struct GqsOpenRow {
  int row;  // -1 at first
  float sum;

  template <typename Put>
  SPARSEKERN_HOST_DEVICE void Meet(float lead, bool begins, float tail, int tail_row,
                                   const Put& put) {
    sum += lead;
    if (!begins) return;
    put(row, sum);
    row = tail_row;
    sum = tail;
  }
  // At the end of the block's tasks.
  template <typename Put>
  SPARSEKERN_HOST_DEVICE void Close(const Put& put) const {
    put(row, sum);
  }
};

// Where the sum of a row is: whether the row has any, and which blocks of threads, of `blocks`,
// began in the middle of it.
struct GqsSplit {
  bool any;
  int first, end;
};
SPARSEKERN_HOST_DEVICE GqsSplit GqsSplitOf(const GqsLayout& s, const uint8_t* structure,
                                           int64_t row, int blocks) {
  const int64_t begin = GqsRowStart(s, structure, row);
  const int64_t until = GqsRowStart(s, structure, row + 1);
  if (begin >= until) return GqsSplit{false, 0, 0};
  const int64_t task =
      static_cast<uint32_t>(begin) / static_cast<uint32_t>(s.task_groups) + int64_t{1};
  const int first = GqsFirstBlock(s.tasks, blocks, task);
  int end = first;
  while (end < blocks && GqsTasksOf(s.tasks, end, blocks).begin * s.task_groups < until) ++end;
  return GqsSplit{true, first, end};
}

// --- batch --------------------------------------------------------------------------------------

// Which of `count` units of a row are kept, from unit `first` on, as bits: count is 2 or 4, first a
// multiple of it, so that one byte of the mask has them all.
SPARSEKERN_HOST_DEVICE uint32_t GqsUnitMask(const GqsLayout& s, const uint8_t* structure,
                                            int64_t row, int64_t first, int count) {
  const int64_t group = first >> s.unit_shift;
  if (group >= s.row_groups) return 0;
  const uint32_t bits = GqsMaskByte(s, structure, row, group >> 3) >> (group & 7);
  const int within = static_cast<int>(first) & ((1 << s.unit_shift) - 1);
  uint32_t result = 0;
  for (int j = 0; j < count; ++j) result |= (bits >> ((within + j) >> s.unit_shift) & 1) << j;
  return result;
}

// Along a row: the number of its next kept unit among those of the matrix.
SPARSEKERN_HOST_DEVICE int64_t GqsFirstUnit(const GqsLayout& s, const uint8_t* structure,
                                            int64_t row) {
  return GqsRowStart(s, structure, row) << s.unit_shift;
}
SPARSEKERN_HOST_DEVICE int GqsOnes(uint32_t four) {  // of four bits
  return static_cast<int>(0x4332322132212110u >> (four * 4) & 7);
}
// The number of unit j of a mask, of which the first that is kept is `next`; -1 where it is not
// kept, or there is no such unit.
SPARSEKERN_HOST_DEVICE int64_t GqsKeptUnit(const GqsLayout& s, int64_t next, uint32_t kept, int j) {
  const int64_t unit = next + GqsOnes(kept & ((1u << j) - 1));
  return (kept >> j & 1) != 0 && unit < s.groups << s.unit_shift ? unit : -1;
}

// Byte offset of columns 4 quarter .. 4 quarter + 3 of unit j in a tile of 64 columns and 16 bits.
SPARSEKERN_HOST_DEVICE int GqsTileOffset(int row, int j, int quarter) {
  return RowOffset(row, 2 * j + quarter / 2) + quarter % 2 * 8;
}

}  // namespace sparsekern::cuda
