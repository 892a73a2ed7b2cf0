// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/csr.h"

#include <algorithm>
#include <string>

#include "formats/bytes.h"

namespace sparsekern {
namespace {

constexpr char kMagic[] = "SKCR";
constexpr uint32_t kVersion = 1;

// 64 bits on every machine: a header read on wasm32 may claim more than its size_t holds.
struct Sections {
  uint64_t tile_ptr, order, count, index, end;
};

Sections SectionsOf(int64_t tiles, int panel_groups, int64_t steps) {
  Sections s;
  s.tile_ptr = kAlign;
  s.order = s.tile_ptr + Aligned(8 * (static_cast<uint64_t>(tiles) + 1));
  s.count = s.order + Aligned(static_cast<uint64_t>(tiles) * panel_groups);
  s.index = s.count + Aligned(static_cast<uint64_t>(tiles) * panel_groups);
  s.end = s.index + static_cast<uint64_t>(steps) * kCsrLanes;
  return s;
}

// Panels of 256 groups pad least (2 to 7 %) and keep the batch kernel's tiles dense; but a decode
// call is split over threads by panels, so a smaller matrix is cut into eight, never below 128
// groups each.
int ChoosePanelGroups(int64_t groups) {
  const int64_t wanted = std::clamp<int64_t>(CeilDiv(groups, 8), 128, kCsrMaxPanelGroups);
  const int64_t panels = CeilDiv(groups, wanted);
  return static_cast<int>(CeilDiv(CeilDiv(groups, panels), kCsrLanes) * kCsrLanes);
}

void SetLayout(CsrStructure* s, int64_t rows, int64_t cols, int block_rows, int panel_groups) {
  s->rows = rows;
  s->cols = cols;
  s->block_rows = block_rows;
  s->panel_groups = panel_groups;
  s->panels = CeilDiv(CeilDiv(rows, block_rows), panel_groups);
  s->blocks = CeilDiv(cols, kCsrBlockCols);
}

// Sorts the groups of one tile by count, most first, stable, and returns the tile's steps.
int64_t SortTile(const uint8_t* group_counts, int panel_groups, uint8_t* order, uint8_t* count) {
  int start[kCsrBlockCols + 2] = {};
  for (int g = 0; g < panel_groups; ++g) ++start[kCsrBlockCols - group_counts[g] + 1];
  for (int i = 1; i <= kCsrBlockCols + 1; ++i) start[i] += start[i - 1];
  for (int g = 0; g < panel_groups; ++g) {
    const int position = start[kCsrBlockCols - group_counts[g]]++;
    order[position] = static_cast<uint8_t>(g);
    count[position] = group_counts[g];
  }
  int64_t steps = 0;
  for (int p = 0; p < panel_groups; p += kCsrLanes) steps += count[p];
  return steps;
}

// Plans a packed structure from a source of patterns: source.Count(group, block) is the number of
// kept columns of one group in one block.
template <typename Source>
void PlanPrefix(const Source& source, CsrStructure* layout, std::vector<uint8_t>* prefix) {
  const int64_t tiles = layout->panels * layout->blocks;
  const int64_t groups = CeilDiv(layout->rows, layout->block_rows);
  const int h = layout->panel_groups;
  const Sections at = SectionsOf(tiles, h, 0);
  prefix->assign(at.index, 0);
  uint8_t* base = prefix->data();
  int64_t steps = 0;
  int64_t kept = 0;
  uint8_t group_counts[kCsrMaxPanelGroups];
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t / layout->blocks * h;
    for (int g = 0; g < h; ++g) {
      const int n = first + g < groups ? source.Count(first + g, t % layout->blocks) : 0;
      group_counts[g] = static_cast<uint8_t>(n);
      kept += n;
    }
    WriteAt<int64_t>(base + at.tile_ptr + 8 * t, steps);
    steps += SortTile(group_counts, h, base + at.order + t * h, base + at.count + t * h);
  }
  WriteAt<int64_t>(base + at.tile_ptr + 8 * tiles, steps);
  layout->steps = steps;
  layout->kept = kept;
  std::memcpy(base, kMagic, 4);
  WriteAt<uint32_t>(base + 4, kVersion);
  WriteAt<int64_t>(base + 8, layout->rows);
  WriteAt<int64_t>(base + 16, layout->cols);
  WriteAt<uint32_t>(base + 24, static_cast<uint32_t>(layout->block_rows));
  WriteAt<uint32_t>(base + 28, static_cast<uint32_t>(h));
  WriteAt<int64_t>(base + 32, steps);
  WriteAt<int64_t>(base + 40, kept);
}

// Calls visit(step, lane, group, block, j) for every kept entry, tile by tile, lane by lane.
template <typename Visit>
void ForEachKept(const CsrStructure& s, const uint8_t* order, const uint8_t* count, Visit visit) {
  const int h = s.panel_groups;
  int64_t step = 0;
  for (int64_t t = 0; t < s.panels * s.blocks; ++t) {
    const int64_t first = t / s.blocks * h;
    for (int p = 0; p < h; ++p) {
      const int64_t position = t * h + p;
      for (int j = 0; j < count[position]; ++j) {
        visit(step + j, p % kCsrLanes, first + order[position], t % s.blocks, j);
      }
      if (p % kCsrLanes == kCsrLanes - 1) step += count[t * h + p - (kCsrLanes - 1)];
    }
  }
}

// Element types as bit patterns: zero is "no bit but the sign".
template <typename T, T kMagnitude>
class DenseSource {
 public:
  DenseSource(const void* dense, const uint8_t* mask, const CsrStructure& layout)
      : dense_(static_cast<const T*>(dense)), mask_(mask), layout_(layout) {}

  void Prefetch(int64_t group, int64_t block) const {
    const int64_t end = std::min(layout_.rows, (group + 1) * layout_.block_rows);
    for (int64_t r = group * layout_.block_rows; r < end; ++r) {
      const T* w = dense_ + r * layout_.cols + block * kCsrBlockCols;
      for (size_t k = 0; k < kCsrBlockCols; k += 64 / sizeof(T)) __builtin_prefetch(w + k);
    }
  }

  // Flags of the kept columns of one group in one block; returns how many columns the block has.
  int Keep(int64_t group, int64_t block, uint8_t* __restrict keep) const {
    const int64_t k0 = block * kCsrBlockCols;
    const int n = static_cast<int>(std::min<int64_t>(kCsrBlockCols, layout_.cols - k0));
    std::memset(keep, 0, kCsrBlockCols);
    const int64_t end = std::min(layout_.rows, (group + 1) * layout_.block_rows);
    for (int64_t r = group * layout_.block_rows; r < end; ++r) {
      const int64_t at = r * layout_.cols + k0;
      if (n == kCsrBlockCols) {  // a trip count that the compiler knows
        AddRow(at, kCsrBlockCols, keep);
      } else {
        AddRow(at, n, keep);
      }
    }
    return n;
  }

  __attribute__((always_inline)) void AddRow(int64_t at, int n, uint8_t* __restrict keep) const {
    if (mask_ != nullptr) {
      const uint8_t* __restrict m = mask_ + at;
      for (int k = 0; k < n; ++k) keep[k] |= m[k] != 0;
    } else {
      const T* __restrict w = dense_ + at;
      for (int k = 0; k < n; ++k) keep[k] |= (w[k] & kMagnitude) != 0;
    }
  }

  int Count(int64_t group, int64_t block) const {
    uint8_t keep[kCsrBlockCols];
    Prefetch(group + 4, block);
    Keep(group, block, keep);
    uint8_t kept = 0;  // at most 128; a byte, so that the sum vectorizes
    for (int k = 0; k < kCsrBlockCols; ++k) kept = static_cast<uint8_t>(kept + keep[k]);
    return kept;
  }

  // Kept columns, ascending and relative to the block, room for one more than there are; how many.
  int Columns(int64_t group, int64_t block, uint8_t* columns) const {
    uint8_t keep[kCsrBlockCols];
    const int n = Keep(group, block, keep);
    int kept = 0;  // branch-free: the pattern is random, a branch would mispredict once a weight
    for (int k = 0; k < n; ++k) {
      columns[kept] = static_cast<uint8_t>(k);
      kept += keep[k];
    }
    return kept;
  }

  void Fill(const uint8_t* order, const uint8_t* count, void* values, uint8_t* index) const {
    T* out = static_cast<T*>(values);
    const int h = layout_.panel_groups;
    const int r_count = layout_.block_rows;
    int64_t step = 0;
    uint8_t columns[kCsrBlockCols + 1];
    for (int64_t t = 0; t < layout_.panels * layout_.blocks; ++t) {
      const int64_t first = t / layout_.blocks * h;
      const int64_t k0 = t % layout_.blocks * kCsrBlockCols;
      for (int p = 0; p < h; ++p) {
        const int lane = p % kCsrLanes;
        if (lane == 0 && p > 0) step += count[t * h + p - kCsrLanes];
        const int n = count[t * h + p];
        if (n == 0) continue;
        const int64_t group = first + order[t * h + p];
        // The rows come in the order of their counts, which no hardware prefetcher follows.
        if (p + 4 < h) Prefetch(first + order[t * h + p + 4], t % layout_.blocks);
        Columns(group, t % layout_.blocks, columns);
        for (int j = 0; j < n; ++j) index[(step + j) * kCsrLanes + lane] = columns[j];
        for (int i = 0; i < r_count; ++i) {
          const int64_t r = group * r_count + i;
          if (r >= layout_.rows) break;
          const T* w = dense_ + r * layout_.cols + k0;
          const uint8_t* m = mask_ != nullptr ? mask_ + r * layout_.cols + k0 : nullptr;
          T* lane_values = out + (step * r_count + i) * kCsrLanes + lane;
          for (int j = 0; j < n; ++j) {
            // In a block of rows a mask may drop one row's weight: that is an explicit zero.
            const bool dropped = m != nullptr && m[columns[j]] == 0;
            lane_values[j * r_count * kCsrLanes] = dropped ? T{0} : w[columns[j]];
          }
        }
      }
      step += count[t * h + h - kCsrLanes];
    }
  }

 private:
  const T* dense_;
  const uint8_t* mask_;
  const CsrStructure& layout_;
};

// Calls f with the DenseSource of the right element width.
template <typename F>
void WithSource(DType dtype, const void* dense, const uint8_t* mask, const CsrStructure& layout,
                F f) {
  switch (dtype) {
    case DType::kF32: f(DenseSource<uint32_t, 0x7fffffffu>(dense, mask, layout)); break;
    case DType::kBF16:
    case DType::kF16: f(DenseSource<uint16_t, 0x7fff>(dense, mask, layout)); break;
    case DType::kI8: f(DenseSource<uint8_t, 0xff>(dense, mask, layout)); break;
  }
}

// The transposed pattern: for each column of the original, its kept rows ascending and where their
// values are.
struct TransposedSource {
  std::vector<int64_t> start;     // [cols + 1]
  std::vector<int32_t> row;       // kept rows of each column, ascending
  std::vector<int64_t> position;  // in the original values

  // The entries of `column` whose rows lie in block `block` of 128.
  void Range(int64_t column, int64_t block, int64_t* begin, int64_t* end) const {
    const auto first = row.begin() + start[column];
    const auto last = row.begin() + start[column + 1];
    *begin = std::lower_bound(first, last, block * kCsrBlockCols) - row.begin();
    *end = std::lower_bound(first, last, (block + 1) * kCsrBlockCols) - row.begin();
  }
  int Count(int64_t column, int64_t block) const {
    int64_t begin, end;
    Range(column, block, &begin, &end);
    return static_cast<int>(end - begin);
  }
};

Status Corrupt(int64_t tile, const std::string& what) {
  return Status::InvalidValue("csr: " + what + " (tile " + Text(tile) + ")");
}

// One tile's order and counts; `limit` is the number of columns in its block.
Status ValidateTileLanes(const CsrStructure& s, int64_t t, int limit) {
  const int h = s.panel_groups;
  const uint8_t* order = s.order + t * h;
  const uint8_t* count = s.count + t * h;
  const int64_t groups = CeilDiv(s.rows, s.block_rows);
  const int64_t first = t / s.blocks * h;
  bool seen[kCsrMaxPanelGroups] = {};
  int64_t steps = 0;
  for (int p = 0; p < h; ++p) {
    if (order[p] >= h || seen[order[p]]) return Corrupt(t, "order must be a permutation");
    seen[order[p]] = true;
    if (count[p] > limit) {
      return Corrupt(t, "count must be at most " + Text(limit) + ", got " + Text(count[p]));
    }
    if (p > 0 &&
        (count[p] > count[p - 1] || (count[p] == count[p - 1] && order[p] < order[p - 1]))) {
      return Corrupt(t, "groups must be sorted by count");
    }
    if (first + order[p] >= groups && count[p] != 0) {
      return Corrupt(t, "a group beyond the last row must be empty");
    }
    if (p % kCsrLanes == 0) steps += count[p];
  }
  if (s.tile_ptr(t) + steps != s.tile_ptr(t + 1)) {
    return Corrupt(t, "tile_ptr must equal the sum of counts");
  }
  return Status::Ok();
}

Status ValidateTileEntries(const CsrStructure& s, int64_t t, int limit, const uint8_t* values,
                           size_t element) {
  const int h = s.panel_groups;
  int64_t step = s.tile_ptr(t);
  for (int p = 0; p < h; ++p) {
    const int lane = p % kCsrLanes;
    const int slice_steps = s.count[t * h + p - lane];
    const int n = s.count[t * h + p];
    const int64_t group = t / s.blocks * h + s.order[t * h + p];
    int previous = -1;
    for (int j = 0; j < slice_steps; ++j) {
      const int64_t q = step + j;
      const int column = s.index[q * kCsrLanes + lane];
      if (j < n && (column <= previous || column >= limit)) {
        return Corrupt(t, "column indices must ascend and be below " + Text(limit) + ", got " +
                              Text(column) + " after " + Text(previous));
      }
      previous = column;
      if (j >= n && column != 0) return Corrupt(t, "padding must have index 0");
      for (int i = 0; i < s.block_rows; ++i) {
        const bool absent = j >= n || group * s.block_rows + i >= s.rows;
        const uint8_t* v = values + ((q * s.block_rows + i) * kCsrLanes + lane) * element;
        if (absent && !AllZero(v, element)) return Corrupt(t, "padding must have value 0");
      }
    }
    if (lane == kCsrLanes - 1) step += slice_steps;
  }
  return Status::Ok();
}

}  // namespace

Status ParseCsrStructure(const void* data, size_t bytes, const char* name, CsrStructure* out) {
  const std::string op = std::string(name) + ": structure";
  const uint8_t* base = static_cast<const uint8_t*>(data);
  SPARSEKERN_RETURN_IF_ERROR(CheckHead(op, base, bytes, kMagic, kVersion));
  CsrStructure s;
  const int64_t rows = ReadAt<int64_t>(base + 8);
  const int64_t cols = ReadAt<int64_t>(base + 16);
  const uint32_t block_rows = ReadAt<uint32_t>(base + 24);
  const uint32_t panel_groups = ReadAt<uint32_t>(base + 28);
  SPARSEKERN_RETURN_IF_ERROR(CheckExtents(op.c_str(), rows, cols));
  if (block_rows != 1 && block_rows != 2 && block_rows != 4) {
    return Status::InvalidValue(op + " block_rows must be 1, 2 or 4, got " + Text(block_rows));
  }
  if (panel_groups < kCsrLanes || panel_groups > kCsrMaxPanelGroups ||
      panel_groups % kCsrLanes != 0) {
    return Status::InvalidValue(op + " panel groups must be a multiple of 16 in [16, 256], got " +
                                Text(panel_groups));
  }
  SetLayout(&s, rows, cols, static_cast<int>(block_rows), static_cast<int>(panel_groups));
  s.steps = ReadAt<int64_t>(base + 32);
  s.kept = ReadAt<int64_t>(base + 40);
  const int64_t tiles = s.panels * s.blocks;
  // A step has at least one entry, a tile at most 128 steps for each of its slices.
  const int64_t max_steps = tiles * (s.panel_groups / kCsrLanes) * kCsrBlockCols;
  if (s.steps < 0 || s.steps > max_steps || s.kept < s.steps || s.kept > s.steps * kCsrLanes) {
    return Status::InvalidValue(op + " counts must be consistent, got " + Text(s.steps) +
                                " steps and " + Text(s.kept) + " kept");
  }
  // Divided before multiplied: a header may claim more than 2^64 bytes.
  const bool claims_too_much = static_cast<uint64_t>(tiles) > bytes / 8 ||
                               static_cast<uint64_t>(s.steps) > bytes / kCsrLanes;
  const Sections at =
      SectionsOf(claims_too_much ? 0 : tiles, s.panel_groups, claims_too_much ? 0 : s.steps);
  if (claims_too_much || bytes != at.end) {
    return Status::InvalidValue(op + " length must match its header (" + Text(tiles) + " tiles, " +
                                Text(s.steps) + " steps), got " +
                                Text(static_cast<int64_t>(bytes)) + " bytes");
  }
  s.tile_ptr_bytes = base + at.tile_ptr;
  s.order = base + at.order;
  s.count = base + at.count;
  s.index = base + at.index;
  int64_t previous = 0;
  bool monotone = s.tile_ptr(0) == 0 && s.tile_ptr(tiles) == s.steps;
  for (int64_t t = 0; t <= tiles; ++t) {
    const int64_t offset = s.tile_ptr(t);
    monotone &= offset >= previous;
    previous = offset;
  }
  if (!monotone) {
    return Status::InvalidValue(op + " tile_ptr must rise from 0 to " + Text(s.steps));
  }
  *out = s;
  return Status::Ok();
}

Status ValidateCsr(const void* structure, size_t structure_bytes, const void* values,
                   int64_t value_count, DType dtype) {
  CsrStructure s;
  SPARSEKERN_RETURN_IF_ERROR(ParseCsrStructure(structure, structure_bytes, "csr", &s));
  if (value_count != s.value_count()) {
    return Status::InvalidValue("csr: values must have " + Text(s.value_count()) +
                                " elements, got " + Text(value_count));
  }
  const uint8_t* base = static_cast<const uint8_t*>(structure);
  const int64_t tiles = s.panels * s.blocks;
  const int h = s.panel_groups;
  const Sections at = SectionsOf(tiles, h, s.steps);
  const bool gaps_zero =
      AllZero(base + 48, 16) &&
      AllZero(base + at.tile_ptr + 8 * (tiles + 1), at.order - at.tile_ptr - 8 * (tiles + 1)) &&
      AllZero(base + at.order + tiles * h, at.count - at.order - tiles * h) &&
      AllZero(base + at.count + tiles * h, at.index - at.count - tiles * h);
  if (!gaps_zero) return Status::InvalidValue("csr: bytes between sections must be 0");
  int64_t kept = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t k0 = t % s.blocks * kCsrBlockCols;
    const int limit = static_cast<int>(std::min<int64_t>(kCsrBlockCols, s.cols - k0));
    SPARSEKERN_RETURN_IF_ERROR(ValidateTileLanes(s, t, limit));
    SPARSEKERN_RETURN_IF_ERROR(
        ValidateTileEntries(s, t, limit, static_cast<const uint8_t*>(values), SizeOf(dtype)));
    for (int p = 0; p < h; ++p) kept += s.count[t * h + p];
  }
  if (kept != s.kept) {
    return Status::InvalidValue("csr: kept must be the sum of counts (" + Text(kept) + "), got " +
                                Text(s.kept));
  }
  return Status::Ok();
}

Status CsrPacker::Plan(const void* dense, DType dtype, int64_t rows, int64_t cols,
                       const uint8_t* mask, int block_rows) {
  SPARSEKERN_RETURN_IF_ERROR(CheckExtents("csr_pack", rows, cols));
  if (block_rows != 1 && block_rows != 2 && block_rows != 4) {
    return Status::InvalidValue("csr_pack: block_rows must be 1, 2 or 4, got " + Text(block_rows));
  }
  if (!IsValid(dtype)) return Status::InvalidType("csr_pack: dense has an unknown dtype");
  dense_ = dense;
  mask_ = mask;
  dtype_ = dtype;
  SetLayout(&layout_, rows, cols, block_rows, ChoosePanelGroups(CeilDiv(rows, block_rows)));
  WithSource(dtype, dense, mask, layout_,
             [&](const auto& source) { PlanPrefix(source, &layout_, &prefix_); });
  return Status::Ok();
}

int64_t CsrPacker::value_count() const { return layout_.value_count(); }

size_t CsrPacker::structure_bytes() const {
  return prefix_.size() + static_cast<size_t>(layout_.steps) * kCsrLanes;
}

void CsrPacker::Fill(void* values, void* structure) const {
  uint8_t* base = static_cast<uint8_t*>(structure);
  std::memcpy(base, prefix_.data(), prefix_.size());
  if (layout_.steps == 0) return;  // nothing kept: `values` is empty and may be null
  std::memset(base + prefix_.size(), 0, structure_bytes() - prefix_.size());
  std::memset(values, 0, static_cast<size_t>(value_count()) * SizeOf(dtype_));
  const Sections at =
      SectionsOf(layout_.panels * layout_.blocks, layout_.panel_groups, layout_.steps);
  WithSource(dtype_, dense_, mask_, layout_, [&](const auto& source) {
    source.Fill(base + at.order, base + at.count, values, base + at.index);
  });
}

void UnpackCsr(const CsrStructure& s, const void* values, DType dtype, void* dense) {
  const size_t element = SizeOf(dtype);
  const uint8_t* in = static_cast<const uint8_t*>(values);
  uint8_t* out = static_cast<uint8_t*>(dense);
  std::memset(out, 0, static_cast<size_t>(s.rows) * s.cols * element);
  ForEachKept(s, s.order, s.count, [&](int64_t step, int lane, int64_t group, int64_t block, int) {
    const int64_t k = block * kCsrBlockCols + s.index[step * kCsrLanes + lane];
    for (int i = 0; i < s.block_rows; ++i) {
      const int64_t r = group * s.block_rows + i;
      if (r >= s.rows) break;
      const int64_t from = (step * s.block_rows + i) * kCsrLanes + lane;
      std::memcpy(out + (r * s.cols + k) * element, in + from * element, element);
    }
  });
}

void CsrMask(const CsrStructure& s, uint8_t* mask) {
  std::memset(mask, 0, static_cast<size_t>(s.rows) * s.cols);
  ForEachKept(s, s.order, s.count, [&](int64_t step, int lane, int64_t group, int64_t block, int) {
    const int64_t k = block * kCsrBlockCols + s.index[step * kCsrLanes + lane];
    const int64_t end = std::min(s.rows, (group + 1) * s.block_rows);
    for (int64_t r = group * s.block_rows; r < end; ++r) mask[r * s.cols + k] = 1;
  });
}

Status TransposeCsr(const CsrStructure& s, std::vector<uint8_t>* transposed,
                    std::vector<int64_t>* permutation) {
  TransposedSource source;
  source.start.assign(s.cols + 1, 0);
  const auto for_each_weight = [&](auto visit) {
    ForEachKept(s, s.order, s.count,
                [&](int64_t step, int lane, int64_t group, int64_t block, int) {
                  const int64_t k = block * kCsrBlockCols + s.index[step * kCsrLanes + lane];
                  for (int i = 0; i < s.block_rows; ++i) {
                    const int64_t r = group * s.block_rows + i;
                    if (r < s.rows) visit(r, k, (step * s.block_rows + i) * kCsrLanes + lane);
                  }
                });
  };
  for_each_weight([&](int64_t, int64_t k, int64_t) { ++source.start[k + 1]; });
  for (int64_t k = 0; k < s.cols; ++k) source.start[k + 1] += source.start[k];
  std::vector<std::pair<int32_t, int64_t>> entries(source.start[s.cols]);
  std::vector<int64_t> next(source.start.begin(), source.start.end() - 1);
  for_each_weight([&](int64_t r, int64_t k, int64_t position) {
    entries[next[k]++] = {static_cast<int32_t>(r), position};
  });
  source.row.resize(entries.size());
  source.position.resize(entries.size());
  for (int64_t k = 0; k < s.cols; ++k) {
    // Inside a panel the sort by count has mixed the rows.
    std::sort(entries.begin() + source.start[k], entries.begin() + source.start[k + 1]);
    for (int64_t i = source.start[k]; i < source.start[k + 1]; ++i) {
      source.row[i] = entries[i].first;
      source.position[i] = entries[i].second;
    }
  }
  CsrStructure t;
  SetLayout(&t, s.cols, s.rows, 1, ChoosePanelGroups(s.cols));
  PlanPrefix(source, &t, transposed);
  const Sections at = SectionsOf(t.panels * t.blocks, t.panel_groups, t.steps);
  transposed->resize(at.end, 0);
  uint8_t* base = transposed->data();
  permutation->assign(t.value_count(), -1);
  ForEachKept(t, base + at.order, base + at.count,
              [&](int64_t step, int lane, int64_t column, int64_t block, int j) {
                int64_t begin, end;
                source.Range(column, block, &begin, &end);
                base[at.index + step * kCsrLanes + lane] =
                    static_cast<uint8_t>(source.row[begin + j] - block * kCsrBlockCols);
                (*permutation)[step * kCsrLanes + lane] = source.position[begin + j];
              });
  return Status::Ok();
}

}  // namespace sparsekern
