// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/gqs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "formats/bytes.h"

namespace sparsekern {
namespace {

constexpr char kMagic[] = "SKGQ";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kZeros = 1, kRowScale = 2;            // flags
constexpr int64_t kMaxCols = int64_t{1} << 25;           // 16 rows of x are below 4 GB
constexpr int64_t kMaxGroups = (int64_t{1} << 32) - 1;   // offsets are u32
constexpr int kMaskBits = 16;                            // of a word
constexpr int64_t kTasks = 256, kLeastTaskUnits = 1024;  // what the packer aims at

Status CheckShape(const std::string& op, int64_t rows, int64_t cols, int64_t group, int64_t bits) {
  if (rows < 1 || cols < 1 || rows >= kMaxExtent || cols >= kMaxCols) {
    return Status::InvalidValue(op + " rows must be in [1, 2^31) and cols in [1, 2^25), got " +
                                Text(rows) + " x " + Text(cols));
  }
  if (group != 16 && group != 32 && group != 64 && group != 128) {
    return Status::InvalidValue(op + " group must be 16, 32, 64 or 128, got " + Text(group));
  }
  if (bits != 2 && bits != 4 && bits != 8) {
    return Status::InvalidValue(op + " bits must be 2, 4 or 8, got " + Text(bits));
  }
  return Status::Ok();
}

void SetLayout(GqsStructure* s, int64_t rows, int64_t cols, int group, int bits) {
  s->rows = rows;
  s->cols = cols;
  s->group = group;
  s->bits = bits;
  s->row_groups = CeilDiv(cols, group);
  s->words = CeilDiv(s->row_groups, kMaskBits);
}

// Where the sections begin; nothing overflows: rows < 2^31, words <= 2^18, groups < 2^32.
struct Sections {
  explicit Sections(const GqsStructure& s)
      : row_ptr(kAlign),
        task_row(row_ptr + Aligned(4 * (static_cast<uint64_t>(s.rows) + 1))),
        mask(task_row + Aligned(4 * static_cast<uint64_t>(s.tasks))),
        row_scale(mask + Aligned(2 * static_cast<uint64_t>(s.rows * s.words))),
        bytes(row_scale + (s.row_scale ? Aligned(4 * static_cast<uint64_t>(s.rows)) : 0)) {}
  uint64_t row_ptr, task_row, mask, row_scale, bytes;
};

uint16_t MaskWord(const GqsStructure& s, int64_t row, int64_t word) {
  return ReadAt<uint16_t>(s.mask + 2 * (row * s.words + word));
}

// Bits of value `i` of unit `u`.
struct Place {
  Place(int bits, int64_t u, int i)
      : word(u / (32 / bits) * kGqsUnit + i), shift(static_cast<int>(u % (32 / bits)) * bits) {}
  int64_t word;
  int shift;
};

// Calls visit(row, group of the row, kept group) for every kept group.
template <typename Visit>
void ForEachKept(const GqsStructure& s, Visit visit) {
  int64_t kept = 0;
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t w = 0; w < s.words; ++w) {
      for (uint32_t bits = MaskWord(s, row, w); bits != 0; bits &= bits - 1) {
        visit(row, w * kMaskBits + std::countr_zero(bits), kept++);
      }
    }
  }
}

Status CheckMask(const GqsStructure& s) {
  const int used = static_cast<int>(s.row_groups % kMaskBits);
  for (int64_t row = 0; row < s.rows; ++row) {
    int64_t kept = 0;
    for (int64_t w = 0; w < s.words; ++w) kept += std::popcount(MaskWord(s, row, w));
    if (kept != s.row_ptr(row + 1) - s.row_ptr(row)) {
      return Status::InvalidValue("gqs: the mask of row " + Text(row) + " must keep " +
                                  Text(s.row_ptr(row + 1) - s.row_ptr(row)) + " groups, got " +
                                  Text(kept));
    }
    if (used != 0 && MaskWord(s, row, s.words - 1) >> used != 0) {
      return Status::InvalidValue("gqs: the mask of row " + Text(row) +
                                  " must be 0 beyond the last group");
    }
  }
  return Status::Ok();
}

// Values beyond the last unit, and those of columns beyond the matrix.
Status CheckPadding(const GqsStructure& s, const uint8_t* values) {
  const int64_t units = s.groups * s.units_per_group();
  const int rest = static_cast<int>(units % s.units_per_block());
  if (rest != 0) {
    for (int i = 0; i < kGqsUnit; ++i) {
      const Place place(s.bits, units, i);
      if (ReadAt<uint32_t>(values + 4 * place.word) >> place.shift != 0) {
        return Status::InvalidValue("gqs: values beyond the last group must be 0");
      }
    }
  }
  if (s.cols % s.group == 0) return Status::Ok();
  const uint32_t ones = (uint32_t{1} << s.bits) - 1;
  Status status;
  ForEachKept(s, [&](int64_t row, int64_t group, int64_t kept) {
    if (group + 1 != s.row_groups) return;
    for (int64_t i = s.cols % s.group; i < s.group; ++i) {
      const Place place(s.bits, kept * s.units_per_group() + i / kGqsUnit,
                        static_cast<int>(i % kGqsUnit));
      if ((ReadAt<uint32_t>(values + 4 * place.word) >> place.shift & ones) != 0) {
        status = Status::InvalidValue("gqs: values beyond the columns must be 0 (row " + Text(row) +
                                      ")");
      }
    }
  });
  return status;
}

Status CheckScales(const GqsStructure& s, const uint8_t* scale, GqsScale kind) {
  for (int64_t i = 0; i < s.scale_count(); ++i) {
    const float v = GqsScaleAt(scale, kind, i);
    if (!std::isfinite(v) || (i < s.groups && v == 0.0f)) {
      const bool zero = i >= s.groups;
      return Status::InvalidValue(std::string("gqs: ") + (zero ? "zero-points" : "scales") +
                                  " must be finite" + (zero ? "" : " and not 0") + ", got " +
                                  std::to_string(v) + " for kept group " +
                                  Text(zero ? i - s.groups : i));
    }
  }
  for (int64_t row = 0; s.row_scale && row < s.rows; ++row) {
    const float v = ReadAt<float>(s.row_scale_bytes + 4 * row);
    if (!std::isfinite(v) || !(v > 0.0f)) {
      return Status::InvalidValue("gqs: row factors must be finite and above 0, got " +
                                  std::to_string(v) + " for row " + Text(row));
    }
  }
  return Status::Ok();
}

int64_t TaskGroups(int64_t groups, int units_per_group) {
  const int64_t units = std::clamp(CeilDiv(groups * units_per_group, kTasks), kLeastTaskUnits,
                                   int64_t{kGqsTaskUnits});
  return std::max<int64_t>(1, units / units_per_group);
}

}  // namespace

float GqsScaleAt(const void* scale, GqsScale kind, int64_t i) {
  const uint8_t* base = static_cast<const uint8_t*>(scale);
  switch (kind) {
    case GqsScale::kF32: return ReadAt<float>(base + 4 * i);
    case GqsScale::kBF16: return F32FromBF16(ReadAt<uint16_t>(base + 2 * i));
    case GqsScale::kF16: return F32FromF16(ReadAt<uint16_t>(base + 2 * i));
    case GqsScale::kU8: return base[i];
  }
  return 0.0f;
}

Status ParseGqsStructure(const void* data, size_t bytes, const char* name, GqsStructure* out) {
  const std::string op = std::string(name) + ": structure";
  const uint8_t* base = static_cast<const uint8_t*>(data);
  SPARSEKERN_RETURN_IF_ERROR(CheckHead(op, base, bytes, kMagic, kVersion));
  const int64_t rows = ReadAt<int64_t>(base + 8);
  const int64_t cols = ReadAt<int64_t>(base + 16);
  const uint32_t group = ReadAt<uint32_t>(base + 24);
  const uint32_t value_bits = ReadAt<uint32_t>(base + 28);
  SPARSEKERN_RETURN_IF_ERROR(CheckShape(op, rows, cols, group, value_bits));
  GqsStructure s;
  SetLayout(&s, rows, cols, static_cast<int>(group), static_cast<int>(value_bits));
  s.groups = ReadAt<int64_t>(base + 32);
  s.task_groups = ReadAt<uint32_t>(base + 40);
  const uint32_t flags = ReadAt<uint32_t>(base + 44);
  if (s.groups < 0 || s.groups > kMaxGroups || s.groups > rows * s.row_groups) {
    return Status::InvalidValue(op + " must keep at most " + Text(rows * s.row_groups) +
                                " groups and fewer than 2^32, got " + Text(s.groups));
  }
  if (s.task_groups < 1 || s.task_groups * s.units_per_group() > kGqsTaskUnits) {
    return Status::InvalidValue(op + " tasks must have 1 to " +
                                Text(kGqsTaskUnits / s.units_per_group()) + " groups, got " +
                                Text(s.task_groups));
  }
  if (flags > (kZeros | kRowScale) || flags == (kZeros | kRowScale)) {
    return Status::InvalidValue(op + " flags must be 0, 1 or 2, got " + Text(flags));
  }
  if (!AllZero(base + 48, kAlign - 48)) {
    return Status::InvalidValue(op + " bytes 48 to 63 must be 0");
  }
  s.zeros = (flags & kZeros) != 0;
  s.row_scale = (flags & kRowScale) != 0;
  s.tasks = CeilDiv(s.groups, s.task_groups);
  const Sections at(s);
  if (bytes != at.bytes) {
    return Status::InvalidValue(op + " length must match its header (" + Text(rows) + " x " +
                                Text(cols) + "), got " + Text(static_cast<int64_t>(bytes)) +
                                " bytes");
  }
  s.row_ptr_bytes = base + at.row_ptr;
  s.task_row_bytes = base + at.task_row;
  s.mask = base + at.mask;
  s.row_scale_bytes = s.row_scale ? base + at.row_scale : nullptr;
  bool sound = s.row_ptr(0) == 0 && s.row_ptr(rows) == s.groups;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t kept = s.row_ptr(row + 1) - s.row_ptr(row);
    sound &= kept >= 0 && kept <= s.row_groups;
  }
  if (!sound) {
    return Status::InvalidValue(op + " row offsets must rise from 0 to " + Text(s.groups) +
                                ", by at most " + Text(s.row_groups));
  }
  for (int64_t t = 0; t < s.tasks; ++t) {
    const int64_t row = s.task_row(t), first = t * s.task_groups;
    if (row >= rows || s.row_ptr(row) > first || s.row_ptr(row + 1) <= first) {
      return Status::InvalidValue(op + " task " + Text(t) +
                                  " must begin in the row of its first group");
    }
  }
  *out = s;
  return Status::Ok();
}

Status ValidateGqs(const void* structure, size_t structure_bytes, const void* values,
                   int64_t value_bytes, const void* scale, int64_t scale_count, GqsScale kind) {
  if (!IsValid(kind)) return Status::InvalidType("gqs: scales have an unknown dtype");
  GqsStructure s;
  SPARSEKERN_RETURN_IF_ERROR(ParseGqsStructure(structure, structure_bytes, "gqs", &s));
  if (value_bytes != s.value_bytes()) {
    return Status::InvalidValue("gqs: values must have " + Text(s.value_bytes()) + " bytes, got " +
                                Text(value_bytes));
  }
  if (scale_count != s.scale_count()) {
    return Status::InvalidValue("gqs: scale must have " + Text(s.scale_count()) +
                                " elements, got " + Text(scale_count));
  }
  if (s.row_scale != (kind == GqsScale::kU8)) {
    return Status::InvalidType(
        "gqs: scales must be 8 bits where rows have a factor, and only there");
  }
  const uint8_t* base = static_cast<const uint8_t*>(structure);
  const Sections at(s);
  const uint64_t ends[] = {at.row_ptr + 4 * (static_cast<uint64_t>(s.rows) + 1),
                           at.task_row + 4 * static_cast<uint64_t>(s.tasks),
                           at.mask + 2 * static_cast<uint64_t>(s.rows * s.words),
                           at.row_scale + (s.row_scale ? 4 * static_cast<uint64_t>(s.rows) : 0)};
  const uint64_t next[] = {at.task_row, at.mask, at.row_scale, at.bytes};
  for (int i = 0; i < 4; ++i) {
    if (!AllZero(base + ends[i], next[i] - ends[i])) {
      return Status::InvalidValue("gqs: bytes between sections must be 0");
    }
  }
  SPARSEKERN_RETURN_IF_ERROR(CheckMask(s));
  SPARSEKERN_RETURN_IF_ERROR(CheckPadding(s, static_cast<const uint8_t*>(values)));
  return CheckScales(s, static_cast<const uint8_t*>(scale), kind);
}

Status GqsPacker::Plan(const GqsSource& source) {
  SPARSEKERN_RETURN_IF_ERROR(
      CheckShape("gqs:", source.rows, source.cols, source.group, source.bits));
  if (source.zeros && source.row_scale != nullptr) {
    return Status::InvalidValue("gqs: 8-bit scales must come without zero-points");
  }
  GqsStructure s;
  SetLayout(&s, source.rows, source.cols, source.group, source.bits);
  s.zeros = source.zeros;
  s.row_scale = source.row_scale != nullptr;
  const int low = -(1 << (s.bits - 1)), high = (1 << (s.bits - 1)) - 1;
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t g = 0; g < s.row_groups; ++g) {
      if (source.mask[row * s.row_groups + g] == 0) continue;
      ++s.groups;
      for (int64_t k = g * s.group; k < std::min<int64_t>(s.cols, (g + 1) * s.group); ++k) {
        const int code = source.codes[row * s.cols + k];
        if (code < low || code > high) {
          return Status::InvalidValue("gqs: codes must be in [" + Text(low) + ", " + Text(high) +
                                      "] for " + Text(s.bits) + " bits, got " + Text(code) +
                                      " (row " + Text(row) + ", column " + Text(k) + ")");
        }
      }
    }
  }
  if (s.groups > kMaxGroups) {
    return Status::InvalidValue("gqs: fewer than 2^32 groups can be kept, got " + Text(s.groups));
  }
  s.task_groups = TaskGroups(s.groups, s.units_per_group());
  s.tasks = CeilDiv(s.groups, s.task_groups);
  constexpr uint64_t kMost = std::numeric_limits<size_t>::max() / 2;
  if (Sections(s).bytes > kMost || static_cast<uint64_t>(s.value_bytes()) > kMost) {
    return Status::OutOfMemory("gqs: a matrix of " + Text(s.rows) + " x " + Text(s.cols) +
                               " must fit into the address space");
  }
  source_ = source;
  layout_ = s;
  return Status::Ok();
}

size_t GqsPacker::structure_bytes() const { return static_cast<size_t>(Sections(layout_).bytes); }

void GqsPacker::Fill(void* values, void* structure) const {
  GqsStructure s = layout_;
  const Sections at(s);
  uint8_t* base = static_cast<uint8_t*>(structure);
  uint8_t* out = static_cast<uint8_t*>(values);
  std::memset(base, 0, static_cast<size_t>(at.bytes));
  if (s.groups != 0) std::memset(out, 0, static_cast<size_t>(s.value_bytes()));
  std::memcpy(base, kMagic, 4);
  WriteAt<uint32_t>(base + 4, kVersion);
  WriteAt<int64_t>(base + 8, s.rows);
  WriteAt<int64_t>(base + 16, s.cols);
  WriteAt<uint32_t>(base + 24, static_cast<uint32_t>(s.group));
  WriteAt<uint32_t>(base + 28, static_cast<uint32_t>(s.bits));
  WriteAt<int64_t>(base + 32, s.groups);
  WriteAt<uint32_t>(base + 40, static_cast<uint32_t>(s.task_groups));
  WriteAt<uint32_t>(base + 44, (s.zeros ? kZeros : 0) | (s.row_scale ? kRowScale : 0));
  if (s.row_scale) {
    std::memcpy(base + at.row_scale, source_.row_scale, 4 * static_cast<size_t>(s.rows));
  }
  const uint32_t ones = (uint32_t{1} << s.bits) - 1;
  int64_t kept = 0;
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t g = 0; g < s.row_groups; ++g) {
      if (source_.mask[row * s.row_groups + g] == 0) continue;
      uint8_t* word = base + at.mask + 2 * (row * s.words + g / kMaskBits);
      WriteAt<uint16_t>(word, static_cast<uint16_t>(ReadAt<uint16_t>(word) |
                                                    1u << static_cast<int>(g % kMaskBits)));
      if (kept % s.task_groups == 0) {
        WriteAt<uint32_t>(base + at.task_row + 4 * (kept / s.task_groups),
                          static_cast<uint32_t>(row));
      }
      const int64_t first = g * s.group, end = std::min(s.cols, first + s.group);
      for (int64_t k = first; k < end; ++k) {
        const Place place(s.bits, kept * s.units_per_group() + (k - first) / kGqsUnit,
                          static_cast<int>((k - first) % kGqsUnit));
        const auto code = static_cast<uint32_t>(source_.codes[row * s.cols + k]) & ones;
        uint8_t* to = out + 4 * place.word;
        WriteAt<uint32_t>(to, ReadAt<uint32_t>(to) | code << place.shift);
      }
      ++kept;
    }
    WriteAt<uint32_t>(base + at.row_ptr + 4 * (row + 1), static_cast<uint32_t>(kept));
  }
}

void UnpackGqs(const GqsStructure& s, const void* values, int8_t* codes) {
  const uint8_t* in = static_cast<const uint8_t*>(values);
  std::memset(codes, 0, static_cast<size_t>(s.rows) * static_cast<size_t>(s.cols));
  ForEachKept(s, [&](int64_t row, int64_t group, int64_t kept) {
    const int64_t first = group * s.group, end = std::min(s.cols, first + s.group);
    for (int64_t k = first; k < end; ++k) {
      const Place place(s.bits, kept * s.units_per_group() + (k - first) / kGqsUnit,
                        static_cast<int>((k - first) % kGqsUnit));
      const uint32_t word = ReadAt<uint32_t>(in + 4 * place.word);
      const auto top = static_cast<int32_t>(word << (32 - s.bits - place.shift));
      codes[row * s.cols + k] = static_cast<int8_t>(top >> (32 - s.bits));
    }
  });
}

void GqsMask(const GqsStructure& s, uint8_t* mask) {
  std::memset(mask, 0, static_cast<size_t>(s.rows) * static_cast<size_t>(s.row_groups));
  ForEachKept(s,
              [&](int64_t row, int64_t group, int64_t) { mask[row * s.row_groups + group] = 1; });
}

}  // namespace sparsekern
