// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/nm.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <type_traits>

#include "formats/bytes.h"

namespace sparsekern {
namespace {

constexpr char kMagic[] = "SKNM";
constexpr uint32_t kVersion = 1;
constexpr int kWordBits = 32;

// Checks n and m; they come from a caller or from a header, so they are as wide as either.
Status CheckPattern(const std::string& op, int64_t n, int64_t m) {
  if (m != 2 && m != 4 && m != 8 && m != 16 && m != 32) {
    return Status::InvalidValue(op + " m must be 2, 4, 8, 16 or 32, got " + Text(m));
  }
  if (n < 1 || n >= m) {
    return Status::InvalidValue(op + " n must be in [1, " + Text(m - 1) + "] for m = " + Text(m) +
                                ", got " + Text(n));
  }
  return Status::Ok();
}

constexpr int WindowOf(int m) { return m <= 4 ? 4 : m <= 16 ? 16 : 32; }
constexpr int FieldBitsOf(int m) { return m <= 4 ? 2 : m <= 16 ? 4 : 8; }

// Nothing overflows: panels <= 2^27, steps < 2^31 and words < 2^29, so that the values are fewer
// than 2^62 and the words' bytes at most 2^62.
void SetLayout(NmStructure* s, int64_t rows, int64_t cols, int n, int m) {
  s->rows = rows;
  s->cols = cols;
  s->n = n;
  s->m = m;
  s->window = WindowOf(m);
  s->field_bits = FieldBitsOf(m);
  s->steps = CeilDiv(cols, s->window) * s->steps_per_window();
  s->words = CeilDiv(s->steps, kWordBits / s->field_bits);
  s->panels = CeilDiv(rows, kNmLanes);
}

// 64 bits on every machine: a header read on wasm32 may claim more than its size_t holds.
uint64_t StructureBytes(const NmStructure& s) {
  return kAlign + static_cast<uint64_t>(s.panels) * static_cast<uint64_t>(s.words) * kNmLanes * 4;
}

// --- packing ------------------------------------------------------------------------------------

// Bit i: byte i of eight is not 0. The product moves the lowest bit of each byte to the top byte.
__attribute__((always_inline)) inline uint32_t NonzeroBytes(const uint8_t* p) {
  auto bytes = ReadAt<uint64_t>(p);
  bytes |= bytes >> 4;
  bytes |= bytes >> 2;
  bytes |= bytes >> 1;
  return static_cast<uint32_t>((bytes & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}

// Bit i: column i of a group is kept. `count` columns exist. Elements are bit patterns: zero is
// "no bit but the sign".
template <typename T, T kMagnitude>
__attribute__((always_inline)) inline uint32_t KeptBits(const T* w, const uint8_t* mask,
                                                        int count) {
  uint32_t bits = 0;
  if (mask != nullptr) {
    int i = 0;
    for (; i + 8 <= count; i += 8) bits |= NonzeroBytes(mask + i) << i;
    for (; i < count; ++i) bits |= static_cast<uint32_t>(mask[i] != 0) << i;
  } else {
    for (int i = 0; i < count; ++i) {
      bits |= static_cast<uint32_t>((w[i] & kMagnitude) != 0) << i;
    }
  }
  return bits;
}

template <typename T, T kMagnitude, int kM>
class Source {
 public:
  Source(const void* dense, const uint8_t* mask, const NmStructure& layout)
      : dense_(static_cast<const T*>(dense)), mask_(mask), s_(layout) {}

  Status CheckGroups() const {
    for (int64_t row = 0; row < s_.rows; ++row) {
      for (int64_t k = 0; k < s_.cols; k += kM) {
        const uint32_t bits = Bits(row, k);
        if (WithoutLowest(bits, s_.n) != 0) {
          return Status::InvalidValue("nm: row " + Text(row) + ", columns " + Text(k) + " to " +
                                      Text(std::min(k + kM, s_.cols) - 1) + " must keep at most " +
                                      Text(s_.n) + " of " + Text(kM) + ", got " +
                                      Text(std::popcount(bits)));
        }
      }
    }
    return Status::Ok();
  }

  // The sixteen rows of a panel advance together, stretch by stretch, so that a line of the
  // first-level cache is read to its end before the next row needs its place: rows are often a
  // power of two apart and meet in one set.
  void Fill(void* values, uint8_t* words) const {
    for (int64_t panel = 0; panel < s_.panels; ++panel) {
      FillPanel(panel, static_cast<T*>(values) + panel * s_.steps * kNmLanes,
                words + panel * s_.words * kNmLanes * 4);
    }
  }

 private:
  // Constants for the compiler: a division by a variable for each group took a third of the time.
  static constexpr int kWindow = WindowOf(kM);
  static constexpr int kFieldBits = FieldBitsOf(kM);
  static constexpr int64_t kStretch = 64;  // columns: whole windows and whole lines

  // popcount is a loop where the processor's instruction may not be used.
  __attribute__((always_inline)) static uint32_t WithoutLowest(uint32_t bits, int count) {
    for (; count > 0 && bits != 0; --count) bits &= bits - 1;
    return bits;
  }

  __attribute__((always_inline)) const T* At(int64_t row, int64_t k) const {
    return dense_ + row * s_.cols + k;
  }

  __attribute__((always_inline)) uint32_t Bits(int64_t row, int64_t k) const {
    const uint8_t* mask = mask_ != nullptr ? mask_ + row * s_.cols + k : nullptr;
    if (k + kM <= s_.cols) {  // a trip count that the compiler knows
      return KeptBits<T, kMagnitude>(At(row, k), mask, kM);
    }
    return KeptBits<T, kMagnitude>(At(row, k), mask, static_cast<int>(s_.cols - k));
  }

  // Every slot of the panel and every bit of its words: the buffers need not be cleared before.
  void FillPanel(int64_t panel, T* values, uint8_t* words) const {
    const int n = s_.n;
    const int64_t end = CeilDiv(s_.cols, kWindow) * kWindow;
    uint32_t open[kNmLanes] = {};  // the words that are not full yet, one a row
    int shift = 0;                 // bits that they hold
    for (int64_t k = 0; k < end; k += kStretch) {
      const int64_t until = std::min(k + kStretch, end);
      Cursor last;
      for (int lane = 0; lane < kNmLanes; ++lane) {
        last = Cursor{values + lane, words + lane * 4, open[lane], shift};
        FillGroups(panel * kNmLanes + lane, k, until, n, &last);
        open[lane] = last.word;
      }
      values = last.values - (kNmLanes - 1);
      words = last.words - (kNmLanes - 1) * 4;
      shift = last.shift;
    }
    if (shift == 0) return;
    for (int lane = 0; lane < kNmLanes; ++lane) WriteAt<uint32_t>(words + lane * 4, open[lane]);
  }

  // Where a row of a panel is written next.
  struct Cursor {
    T* values = nullptr;
    uint8_t* words = nullptr;
    uint32_t word = 0;
    int shift = 0;
  };

  // The groups of a row that begin in [k, until).
  __attribute__((always_inline)) void FillGroups(int64_t row, int64_t k, int64_t until, int n,
                                                 Cursor* cursor) const {
    Cursor at = *cursor;
    for (; k < until; k += kM) {
      const bool stored = row < s_.rows && k < s_.cols;
      const uint32_t kept = stored ? Bits(row, k) : 0;
      // What may be copied: with a mask only the mask, so that what it leaves out is stored as 0.
      uint32_t copied = kept;
      if (stored && mask_ == nullptr) {
        copied = s_.cols - k >= kM ? ~uint32_t{0} : (uint32_t{1} << (s_.cols - k)) - 1;
      }
      uint32_t bits = kept;
      if (WithoutLowest(bits, n - 1) == 0) {  // fewer than n: the lowest others too
        for (int more = n - std::popcount(kept); more > 0; --more) bits |= bits + 1;
      }
      const auto group = static_cast<uint32_t>(k % kWindow);
      const T* w = stored ? At(row, k) : nullptr;
      for (int j = 0; j < n; ++j) {
        const int column = std::countr_zero(bits);
        bits &= bits - 1;
        *at.values = (copied >> column & 1) != 0 ? w[column] : T{0};
        at.values += kNmLanes;
        at.word |= (group + static_cast<uint32_t>(column)) << at.shift;
        at.shift += kFieldBits;
        if (at.shift == kWordBits) {
          WriteAt<uint32_t>(at.words, at.word);
          at.words += kNmLanes * 4;
          at.word = 0;
          at.shift = 0;
        }
      }
    }
    *cursor = at;
  }

  const T* dense_;
  const uint8_t* mask_;
  const NmStructure& s_;
};

template <typename T, T kMagnitude, typename F>
void WithM(const void* dense, const uint8_t* mask, const NmStructure& s, F f) {
  switch (s.m) {
    case 2: f(Source<T, kMagnitude, 2>(dense, mask, s)); break;
    case 4: f(Source<T, kMagnitude, 4>(dense, mask, s)); break;
    case 8: f(Source<T, kMagnitude, 8>(dense, mask, s)); break;
    case 16: f(Source<T, kMagnitude, 16>(dense, mask, s)); break;
    case 32: f(Source<T, kMagnitude, 32>(dense, mask, s)); break;
  }
}

// Calls f with the Source of the right element width and M.
template <typename F>
void WithSource(DType dtype, const void* dense, const uint8_t* mask, const NmStructure& s, F f) {
  switch (dtype) {
    case DType::kF32: WithM<uint32_t, 0x7fffffffu>(dense, mask, s, f); break;
    case DType::kBF16:
    case DType::kF16: WithM<uint16_t, 0x7fff>(dense, mask, s, f); break;
    case DType::kI8: WithM<uint8_t, 0xff>(dense, mask, s, f); break;
  }
}

// --- reading ------------------------------------------------------------------------------------

// Calls visit(row, step, field, position in values) for every slot of the first `rows` rows, row by
// row, until it answers false.
template <typename Visit>
void ForEachSlot(const NmStructure& s, int64_t rows, Visit visit) {
  const int fields = kWordBits / s.field_bits;
  const uint32_t field_mask = (uint32_t{1} << s.field_bits) - 1;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t panel = row / kNmLanes;
    const int64_t lane = row % kNmLanes;
    for (int64_t q = 0; q < s.words; ++q) {
      uint32_t word = ReadAt<uint32_t>(s.index + ((panel * s.words + q) * kNmLanes + lane) * 4);
      const int64_t end = std::min(s.steps, (q + 1) * fields);
      for (int64_t j = q * fields; j < end; ++j) {
        const auto field = static_cast<int>(word & field_mask);
        word >>= s.field_bits;
        if (!visit(row, j, field, (panel * s.steps + j) * kNmLanes + lane)) return;
      }
    }
  }
}

// Calls visit(row, column, position in values) for every kept weight of the matrix.
template <typename Visit>
void ForEachKept(const NmStructure& s, Visit visit) {
  const int per_window = s.steps_per_window();
  ForEachSlot(s, s.rows, [&](int64_t row, int64_t j, int field, int64_t position) {
    const int64_t column = j / per_window * s.window + field;
    if (column < s.cols) visit(row, column, position);
    return true;
  });
}

Status Corrupt(int64_t row, int64_t step, const std::string& what) {
  return Status::InvalidValue("nm: " + what + " (row " + Text(row) + ", step " + Text(step) + ")");
}

// The bits behind the last step's field.
Status CheckUnusedFields(const NmStructure& s) {
  const int used = static_cast<int>(s.steps % (kWordBits / s.field_bits)) * s.field_bits;
  if (used == 0) return Status::Ok();
  for (int64_t panel = 0; panel < s.panels; ++panel) {
    for (int lane = 0; lane < kNmLanes; ++lane) {
      const int64_t word = ((panel + 1) * s.words - 1) * kNmLanes + lane;
      if (ReadAt<uint32_t>(s.index + word * 4) >> used != 0) {
        return Corrupt(panel * kNmLanes + lane, s.steps, "fields beyond the last step must be 0");
      }
    }
  }
  return Status::Ok();
}

}  // namespace

Status ParseNmStructure(const void* data, size_t bytes, const char* name, NmStructure* out) {
  const std::string op = std::string(name) + ": structure";
  const uint8_t* base = static_cast<const uint8_t*>(data);
  SPARSEKERN_RETURN_IF_ERROR(CheckHead(op, base, bytes, kMagic, kVersion));
  const int64_t rows = ReadAt<int64_t>(base + 8);
  const int64_t cols = ReadAt<int64_t>(base + 16);
  const uint32_t n = ReadAt<uint32_t>(base + 24);
  const uint32_t m = ReadAt<uint32_t>(base + 28);
  SPARSEKERN_RETURN_IF_ERROR(CheckExtents(op.c_str(), rows, cols));
  SPARSEKERN_RETURN_IF_ERROR(CheckPattern(op, n, m));
  NmStructure s;
  SetLayout(&s, rows, cols, static_cast<int>(n), static_cast<int>(m));
  const int64_t steps = ReadAt<int64_t>(base + 32);
  if (steps != s.steps) {
    return Status::InvalidValue(op + " steps must be " + Text(s.steps) + " for its columns, got " +
                                Text(steps));
  }
  if (!AllZero(base + 40, kAlign - 40)) {
    return Status::InvalidValue(op + " bytes 40 to 63 must be 0");
  }
  if (bytes != StructureBytes(s)) {
    return Status::InvalidValue(op + " length must match its header (" + Text(rows) + " x " +
                                Text(cols) + "), got " + Text(static_cast<int64_t>(bytes)) +
                                " bytes");
  }
  s.index = base + kAlign;
  *out = s;
  return Status::Ok();
}

Status ValidateNm(const void* structure, size_t structure_bytes, const void* values,
                  int64_t value_count, DType dtype) {
  if (!IsValid(dtype)) return Status::InvalidType("nm: values have an unknown dtype");
  NmStructure s;
  SPARSEKERN_RETURN_IF_ERROR(ParseNmStructure(structure, structure_bytes, "nm", &s));
  if (value_count != s.value_count()) {
    return Status::InvalidValue("nm: values must have " + Text(s.value_count()) +
                                " elements, got " + Text(value_count));
  }
  SPARSEKERN_RETURN_IF_ERROR(CheckUnusedFields(s));
  const uint8_t* bytes = static_cast<const uint8_t*>(values);
  const size_t element = SizeOf(dtype);
  Status status;
  int in_group = 0;    // which of the n of its group the step is
  int in_window = 0;   // first column of the group, within its window
  int64_t window = 0;  // first column of the window
  int previous = -1;
  const auto check = [&](int64_t row, int64_t j, int field, int64_t position) {
    if (j == 0) in_group = in_window = 0, window = 0;
    if (in_group == 0) previous = in_window - 1;
    if (field <= previous || field >= in_window + s.m) {
      status = Corrupt(row, j,
                       "columns must ascend in a group and be in [" + Text(window + in_window) +
                           ", " + Text(window + in_window + s.m) + "), got " +
                           Text(window + field) + " after " + Text(window + previous));
      return false;
    }
    previous = field;
    const bool outside = row >= s.rows || window + field >= s.cols;
    // One packed form: where nothing is chosen, the lowest columns stand.
    if (outside && field != in_window + in_group) {
      status = Corrupt(row, j, "a group beyond the matrix must keep its lowest columns");
      return false;
    }
    if (outside && !AllZero(bytes + static_cast<size_t>(position) * element, element)) {
      status = Corrupt(row, j, "values beyond the matrix must be 0");
      return false;
    }
    if (++in_group == s.n) {
      in_group = 0;
      in_window += s.m;
      if (in_window == s.window) {
        in_window = 0;
        window += s.window;
      }
    }
    return true;
  };
  ForEachSlot(s, s.panels * kNmLanes, check);
  return status;
}

Status PlanNm(int64_t rows, int64_t cols, int n, int m, DType dtype, NmStructure* out) {
  SPARSEKERN_RETURN_IF_ERROR(CheckExtents("nm", rows, cols));
  SPARSEKERN_RETURN_IF_ERROR(CheckPattern("nm:", n, m));
  if (!IsValid(dtype)) return Status::InvalidType("nm: dense has an unknown dtype");
  NmStructure s;
  SetLayout(&s, rows, cols, n, m);
  // Panels of 16 rows: one row is stored as 16, which may be more than the machine can address.
  constexpr uint64_t kMost = std::numeric_limits<size_t>::max() / 2;
  if (StructureBytes(s) > kMost || static_cast<uint64_t>(s.value_count()) > kMost / SizeOf(dtype)) {
    return Status::OutOfMemory("nm: a matrix of " + Text(rows) + " x " + Text(cols) +
                               " must fit into the address space");
  }
  *out = s;
  return Status::Ok();
}

size_t NmStructureBytes(const NmStructure& s) { return static_cast<size_t>(StructureBytes(s)); }

void WriteNmHeader(const NmStructure& s, void* out) {
  auto* base = static_cast<uint8_t*>(out);
  std::memset(base, 0, kAlign);
  std::memcpy(base, kMagic, 4);
  WriteAt<uint32_t>(base + 4, kVersion);
  WriteAt<int64_t>(base + 8, s.rows);
  WriteAt<int64_t>(base + 16, s.cols);
  WriteAt<uint32_t>(base + 24, static_cast<uint32_t>(s.n));
  WriteAt<uint32_t>(base + 28, static_cast<uint32_t>(s.m));
  WriteAt<int64_t>(base + 32, s.steps);
}

Status NmPacker::Plan(const void* dense, DType dtype, int64_t rows, int64_t cols, int n, int m,
                      const uint8_t* mask) {
  NmStructure s;
  SPARSEKERN_RETURN_IF_ERROR(PlanNm(rows, cols, n, m, dtype, &s));
  Status status;
  WithSource(dtype, dense, mask, s, [&](const auto& source) { status = source.CheckGroups(); });
  SPARSEKERN_RETURN_IF_ERROR(status);
  dense_ = dense;
  mask_ = mask;
  dtype_ = dtype;
  layout_ = s;
  return Status::Ok();
}

size_t NmPacker::structure_bytes() const { return NmStructureBytes(layout_); }

void NmPacker::Fill(void* values, void* structure) const {
  WriteNmHeader(layout_, structure);
  WithSource(dtype_, dense_, mask_, layout_, [&](const auto& source) {
    source.Fill(values, static_cast<uint8_t*>(structure) + kAlign);
  });
}

void UnpackNm(const NmStructure& s, const void* values, DType dtype, void* dense) {
  const size_t element = SizeOf(dtype);
  const uint8_t* in = static_cast<const uint8_t*>(values);
  uint8_t* out = static_cast<uint8_t*>(dense);
  std::memset(out, 0, static_cast<size_t>(s.rows) * static_cast<size_t>(s.cols) * element);
  ForEachKept(s, [&](int64_t row, int64_t column, int64_t position) {
    std::memcpy(out + static_cast<size_t>(row * s.cols + column) * element,
                in + static_cast<size_t>(position) * element, element);
  });
}

void NmMask(const NmStructure& s, uint8_t* mask) {
  std::memset(mask, 0, static_cast<size_t>(s.rows) * static_cast<size_t>(s.cols));
  ForEachKept(s, [&](int64_t row, int64_t column, int64_t) { mask[row * s.cols + column] = 1; });
}

}  // namespace sparsekern
