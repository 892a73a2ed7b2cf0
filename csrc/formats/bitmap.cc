// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/bitmap.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "formats/bytes.h"

namespace sparsekern {
namespace {

constexpr char kMagic[] = "SKBM";
constexpr uint32_t kVersion = 1;

// Nothing overflows: panels <= 2^27 and words <= 2^25, so the bitmap has at most 2^59 bytes.
void SetLayout(BitmapStructure* s, int64_t rows, int64_t cols) {
  s->rows = rows;
  s->cols = cols;
  s->panels = CeilDiv(rows, kBitmapLanes);
  s->words = CeilDiv(cols, kBitmapWord);
}

// 64 bits on every machine: a header read on wasm32 may claim more than its size_t holds.
uint64_t BitmapOffset(const BitmapStructure& s) {
  return kAlign + Aligned((static_cast<uint64_t>(s.panels) + 1) * 8);
}
uint64_t StructureBytes(const BitmapStructure& s) {
  return BitmapOffset(s) +
         static_cast<uint64_t>(s.panels) * static_cast<uint64_t>(s.words) * kBitmapLanes * 8;
}

// Columns of word w that exist.
int WordColumns(const BitmapStructure& s, int64_t w) {
  return static_cast<int>(std::min<int64_t>(kBitmapWord, s.cols - w * kBitmapWord));
}

uint64_t WordAt(const BitmapStructure& s, int64_t panel, int64_t w, int lane) {
  return ReadAt<uint64_t>(s.slice(panel, w) + lane * 8);
}

// --- packing ------------------------------------------------------------------------------------

// Elements are bit patterns: zero is "no bit but the sign".
template <typename T, T kMagnitude>
uint64_t KeptBits(const T* w, const uint8_t* mask, int count) {
  uint64_t bits = 0;
  if (mask != nullptr) {
    for (int i = 0; i < count; ++i) bits |= static_cast<uint64_t>(mask[i] != 0) << i;
  } else {
    for (int i = 0; i < count; ++i) {
      bits |= static_cast<uint64_t>((w[i] & kMagnitude) != 0) << i;
    }
  }
  return bits;
}

// Calls visit(word number, lane, first element of it, its bits) for every word of a panel, in
// order.
template <typename T, T kMagnitude, typename Visit>
void ForEachWord(const BitmapStructure& s, const void* dense, const uint8_t* mask, int64_t panel,
                 Visit visit) {
  const T* elements = static_cast<const T*>(dense);
  const int rows = static_cast<int>(std::min<int64_t>(kBitmapLanes, s.rows - panel * kBitmapLanes));
  for (int64_t w = 0; w < s.words; ++w) {
    const int count = WordColumns(s, w);
    for (int lane = 0; lane < rows; ++lane) {
      const int64_t at = (panel * kBitmapLanes + lane) * s.cols + w * kBitmapWord;
      const uint8_t* kept = mask != nullptr ? mask + at : nullptr;
      visit(w, lane, elements + at, KeptBits<T, kMagnitude>(elements + at, kept, count));
    }
  }
}

template <typename T, T kMagnitude>
int64_t CountPanel(const BitmapStructure& s, const void* dense, const uint8_t* mask,
                   int64_t panel) {
  int64_t kept = 0;
  ForEachWord<T, kMagnitude>(s, dense, mask, panel, [&kept](int64_t, int, const T*, uint64_t bits) {
    kept += std::popcount(bits);
  });
  return kept;
}

template <typename T, T kMagnitude>
void FillPanel(const BitmapStructure& s, const void* dense, const uint8_t* mask, int64_t panel,
               void* values, int64_t first, uint8_t* bitmap) {
  T* next = static_cast<T*>(values) + first;
  uint8_t* words = bitmap + static_cast<size_t>(panel * s.words) * kBitmapLanes * 8;
  ForEachWord<T, kMagnitude>(s, dense, mask, panel,
                             [&](int64_t w, int lane, const T* elements, uint64_t bits) {
                               WriteAt<uint64_t>(words + (w * kBitmapLanes + lane) * 8, bits);
                               for (; bits != 0; bits &= bits - 1)
                                 *next++ = elements[std::countr_zero(bits)];
                             });
}

// Calls f.template operator()<element type, magnitude bits>() for the dtype.
template <typename F>
void WithElement(DType dtype, F f) {
  switch (dtype) {
    case DType::kF32: f.template operator()<uint32_t, 0x7fffffffu>(); break;
    case DType::kBF16:
    case DType::kF16: f.template operator()<uint16_t, 0x7fff>(); break;
    case DType::kI8: f.template operator()<uint8_t, 0xff>(); break;
  }
}

// --- reading ------------------------------------------------------------------------------------

Status Corrupt(int64_t panel, int64_t w, int lane, const std::string& what) {
  return Status::InvalidValue("bitmap: " + what + " (row " + Text(panel * kBitmapLanes + lane) +
                              ", columns from " + Text(w * kBitmapWord) + ")");
}

// Bits of rows and columns that do not exist, and the sum of all others.
Status CheckPanel(const BitmapStructure& s, int64_t panel, int64_t* kept) {
  const int64_t rows = s.rows - panel * kBitmapLanes;
  *kept = 0;
  for (int64_t w = 0; w < s.words; ++w) {
    const int columns = WordColumns(s, w);
    const uint64_t inside = columns == kBitmapWord ? ~uint64_t{0} : (uint64_t{1} << columns) - 1;
    for (int lane = 0; lane < kBitmapLanes; ++lane) {
      const uint64_t bits = WordAt(s, panel, w, lane);
      if ((bits & ~(lane < rows ? inside : 0)) != 0) {
        return Corrupt(panel, w, lane, "bits beyond the matrix must be 0");
      }
      *kept += std::popcount(bits);
    }
  }
  return Status::Ok();
}

// Calls visit(row, column, position in values) for every kept weight of a validated matrix.
template <typename Visit>
void ForEachKept(const BitmapStructure& s, Visit visit) {
  for (int64_t panel = 0; panel < s.panels; ++panel) {
    int64_t position = s.panel_ptr(panel);
    const int64_t end = s.panel_ptr(panel + 1);
    for (int64_t w = 0; w < s.words; ++w) {
      for (int lane = 0; lane < kBitmapLanes; ++lane) {
        for (uint64_t bits = WordAt(s, panel, w, lane); bits != 0; bits &= bits - 1) {
          const int64_t row = panel * kBitmapLanes + lane;
          const int64_t column = w * kBitmapWord + std::countr_zero(bits);
          // Only a structure that was never validated fails here.
          if (row >= s.rows || column >= s.cols || position >= end) return;
          visit(row, column, position++);
        }
      }
    }
  }
}

}  // namespace

Status ParseBitmapStructure(const void* data, size_t bytes, const char* name,
                            BitmapStructure* out) {
  const std::string op = std::string(name) + ": structure";
  const uint8_t* base = static_cast<const uint8_t*>(data);
  SPARSEKERN_RETURN_IF_ERROR(CheckHead(op, base, bytes, kMagic, kVersion));
  const int64_t rows = ReadAt<int64_t>(base + 8);
  const int64_t cols = ReadAt<int64_t>(base + 16);
  const int64_t kept = ReadAt<int64_t>(base + 24);
  SPARSEKERN_RETURN_IF_ERROR(CheckExtents(op.c_str(), rows, cols));
  // As CheckExtents has it, the product is below 2^62.
  if (kept < 0 || kept > rows * cols) {
    return Status::InvalidValue(op + " kept must be in [0, rows * cols], got " + Text(kept));
  }
  if (!AllZero(base + 32, kAlign - 32)) {
    return Status::InvalidValue(op + " bytes 32 to 63 must be 0");
  }
  BitmapStructure s;
  SetLayout(&s, rows, cols);
  s.kept = kept;
  if (bytes != StructureBytes(s)) {
    return Status::InvalidValue(op + " length must match its header (" + Text(rows) + " x " +
                                Text(cols) + "), got " + Text(static_cast<int64_t>(bytes)) +
                                " bytes");
  }
  s.panel_ptr_bytes = base + kAlign;
  s.bitmap = base + BitmapOffset(s);
  int64_t before = 0;
  for (int64_t p = 0; p <= s.panels; ++p) {
    const int64_t here = s.panel_ptr(p);
    if (here < before || here > kept || (p == 0 && here != 0) || (p == s.panels && here != kept)) {
      return Status::InvalidValue(op + " panel offsets must ascend from 0 to kept (" + Text(kept) +
                                  "), got " + Text(here) + " for panel " + Text(p));
    }
    before = here;
  }
  *out = s;
  return Status::Ok();
}

Status ValidateBitmap(const void* structure, size_t structure_bytes, const void*,
                      int64_t value_count, DType dtype) {
  if (!IsValid(dtype)) return Status::InvalidType("bitmap: values have an unknown dtype");
  BitmapStructure s;
  SPARSEKERN_RETURN_IF_ERROR(ParseBitmapStructure(structure, structure_bytes, "bitmap", &s));
  if (value_count != s.kept) {
    return Status::InvalidValue("bitmap: values must have " + Text(s.kept) + " elements, got " +
                                Text(value_count));
  }
  const uint8_t* end_of_offsets = s.panel_ptr_bytes + (s.panels + 1) * 8;
  if (!AllZero(end_of_offsets, static_cast<uint64_t>(s.bitmap - end_of_offsets))) {
    return Status::InvalidValue("bitmap: bytes behind the panel offsets must be 0");
  }
  for (int64_t p = 0; p < s.panels; ++p) {
    int64_t kept = 0;
    SPARSEKERN_RETURN_IF_ERROR(CheckPanel(s, p, &kept));
    if (kept != s.panel_ptr(p + 1) - s.panel_ptr(p)) {
      return Status::InvalidValue("bitmap: panel " + Text(p) +
                                  " must have as many values as bits (" + Text(kept) + "), got " +
                                  Text(s.panel_ptr(p + 1) - s.panel_ptr(p)));
    }
  }
  return Status::Ok();
}

Status BitmapPacker::Plan(const void* dense, DType dtype, int64_t rows, int64_t cols,
                          const uint8_t* mask, const ParallelFor& parallel_for) {
  SPARSEKERN_RETURN_IF_ERROR(CheckExtents("bitmap", rows, cols));
  if (!IsValid(dtype)) return Status::InvalidType("bitmap: dense has an unknown dtype");
  BitmapStructure s;
  SetLayout(&s, rows, cols);
  // Panels of 16 rows: the bits of one row take the room of 16.
  if (StructureBytes(s) > std::numeric_limits<size_t>::max() / 2) {
    return Status::OutOfMemory("bitmap: a matrix of " + Text(rows) + " x " + Text(cols) +
                               " must fit into the address space");
  }
  std::vector<int64_t> ptr(static_cast<size_t>(s.panels) + 1, 0);
  WithElement(dtype, [&]<typename T, T kMagnitude>() {
    ForEachRange(parallel_for, s.panels, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        ptr[static_cast<size_t>(p) + 1] = CountPanel<T, kMagnitude>(s, dense, mask, p);
      }
    });
  });
  for (size_t p = 1; p < ptr.size(); ++p) ptr[p] += ptr[p - 1];
  s.kept = ptr.back();
  dense_ = dense;
  mask_ = mask;
  dtype_ = dtype;
  layout_ = s;
  panel_ptr_ = std::move(ptr);
  return Status::Ok();
}

size_t BitmapPacker::structure_bytes() const {
  return static_cast<size_t>(StructureBytes(layout_));
}

void BitmapPacker::Fill(void* values, void* structure, const ParallelFor& parallel_for) const {
  const BitmapStructure& s = layout_;
  uint8_t* base = static_cast<uint8_t*>(structure);
  // Whole: rows that do not exist have words too.
  std::memset(base, 0, structure_bytes());
  std::memcpy(base, kMagic, 4);
  WriteAt<uint32_t>(base + 4, kVersion);
  WriteAt<int64_t>(base + 8, s.rows);
  WriteAt<int64_t>(base + 16, s.cols);
  WriteAt<int64_t>(base + 24, s.kept);
  std::memcpy(base + kAlign, panel_ptr_.data(), panel_ptr_.size() * 8);
  uint8_t* bitmap = base + BitmapOffset(s);
  WithElement(dtype_, [&]<typename T, T kMagnitude>() {
    ForEachRange(parallel_for, s.panels, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        FillPanel<T, kMagnitude>(s, dense_, mask_, p, values, panel_ptr_[static_cast<size_t>(p)],
                                 bitmap);
      }
    });
  });
}

void UnpackBitmap(const BitmapStructure& s, const void* values, DType dtype, void* dense) {
  const size_t element = SizeOf(dtype);
  const uint8_t* in = static_cast<const uint8_t*>(values);
  uint8_t* out = static_cast<uint8_t*>(dense);
  std::memset(out, 0, static_cast<size_t>(s.rows) * static_cast<size_t>(s.cols) * element);
  ForEachKept(s, [&](int64_t row, int64_t column, int64_t position) {
    std::memcpy(out + static_cast<size_t>(row * s.cols + column) * element,
                in + static_cast<size_t>(position) * element, element);
  });
}

void BitmapMask(const BitmapStructure& s, uint8_t* mask) {
  std::memset(mask, 0, static_cast<size_t>(s.rows) * static_cast<size_t>(s.cols));
  ForEachKept(s, [&](int64_t row, int64_t column, int64_t) { mask[row * s.cols + column] = 1; });
}

}  // namespace sparsekern
