// SPDX-License-Identifier: Apache-2.0
// y = activation(x W^T + bias) for a bitmap matrix W: the decode kernels for a few rows of x, the
// batch kernel for more.
#include <algorithm>
#include <cstring>

#include "base/linear_driver.h"
#include "ops/bitmap_linear/kernels.h"
#include "sparsekern/bitmap_linear.h"

namespace sparsekern {
namespace {

// Panels whose results are finished together, and that meet a word of x (16 KB with 64 rows of x)
// before the next word: their sums, 128 rows times 64, are 32 KB.
constexpr int kGroupPanels = 8;
constexpr int kGroupRows = kGroupPanels * kBitmapLanes;

constexpr char kOp[] = "bitmap_linear";

int64_t PaddedCols(const BitmapStructure& s) { return s.words * kBitmapWord; }

// The panel where a part of about equal work begins: bytes of bits and of values.
int64_t PanelCut(const BitmapStructure& s, int64_t element, int64_t part, int64_t parts) {
  const int64_t bits = s.words * kBitmapLanes * 8;
  const auto before = [&](int64_t p) { return p * bits + s.panel_ptr(p) * element; };
  const double target = static_cast<double>(before(s.panels)) * static_cast<double>(part) /
                        static_cast<double>(parts);
  int64_t low = 0, high = s.panels;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (static_cast<double>(before(middle)) < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Not always that of its tile kernels.
const char* KernelSet(IsaMask mask) {
#define SPARSEKERN_BITMAP_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return #isa_suffix;
#include "ops/bitmap_linear/kernels.inc"
#undef SPARSEKERN_BITMAP_KERNELS
  return "scalar";
}

Status Decode(const BitmapKernels& kernels, const BitmapMatrix& w, const LinearArgs& a,
              const ParallelFor& parallel_for) {
  const BitmapStructure& s = w.structure;
  const TileKernels& tiles = kernels.tiles;
  const int dtype = static_cast<int>(a.dtype);
  const int rows = static_cast<int>(a.x_rows);
  // A word more than the columns: words of x that are a power of two apart would meet in one set of
  // the first-level cache, which took sixteen rows of 4096 columns twice the time.
  const int64_t x_stride = PaddedCols(s) + kBitmapWord;
  const Scratch x(x_stride * rows);  // fp32
  if (x.data() == nullptr) return OutOfScratch(kOp);
  const auto load = [&](int m) {
    float* row = x.data() + m * x_stride;
    tiles.expand[dtype](RowAt(a, m), s.cols, row);
    std::memset(row + s.cols, 0, sizeof(float) * static_cast<size_t>(x_stride - s.cols));
    return row;
  };
  const int values = static_cast<int>(w.dtype);
  const BitmapArrangeFn arrange = kernels.arranged.arrange[values];
  bool arranged = arrange != nullptr && rows <= kernels.arranged.max_rows;
  for (int m = 0; arranged && m < rows; ++m) arranged = arrange(load(m), s.words);
  for (int m = 0; !arranged && m < rows; ++m) load(m);
  const auto& one = arranged ? kernels.arranged.decode : kernels.decode;
  const auto& few = arranged ? kernels.arranged.few : kernels.few;
  const BitmapDecodeFn product = rows == 1 ? one[values] : few[values];
  const auto element = static_cast<int64_t>(SizeOf(w.dtype));
  const int64_t parts = std::min<int64_t>(parallel_for.threads, s.panels);
  ForEachRange(parallel_for, parts, [&](int64_t begin, int64_t end) {
    float y[kBitmapMaxDecodeRows * kGroupRows];
    const int64_t last = PanelCut(s, element, end, parts);
    for (int64_t panel = PanelCut(s, element, begin, parts); panel < last; panel += kGroupPanels) {
      const int64_t until = std::min(last, panel + kGroupPanels);
      for (int64_t p = panel; p < until; ++p) {
        product(PanelAt(w, p), x.data(), x_stride, rows, y + (p - panel) * kBitmapLanes,
                kGroupRows);
      }
      const int64_t first = panel * kBitmapLanes;
      const int64_t n = std::min(until * kBitmapLanes, s.rows) - first;
      for (int m = 0; m < rows; ++m) {
        StoreRow(tiles, a, w.scale, m, first, n, y + m * kGroupRows);
      }
    }
  });
  return Status::Ok();
}

// What a batch thread needs for one x tile.
struct BatchScratch {
  BatchScratch(const BitmapStructure& s, int width)
      : x(PaddedCols(s) * width), y(kGroupRows * width) {}
  bool ok() const { return x.data() != nullptr && y.data() != nullptr; }

  Scratch x, y;
};

// Sums of up to kGroupPanels panels from `panel` on: scratch.y[rows][width].
void BatchPanels(const BitmapKernels& kernels, const BitmapMatrix& w, int64_t panel, int64_t until,
                 int width_index, const BatchScratch& scratch) {
  const int width = kernels.tiles.widths[width_index];
  const ExpandFn expand = kernels.tiles.expand[static_cast<int>(w.dtype)];
  BitmapValues values[kGroupPanels];
  for (int64_t p = panel; p < until; ++p) values[p - panel] = PanelAt(w, p).values;
  for (int64_t word = 0; word < w.structure.words; ++word) {
    for (int64_t p = panel; p < until; ++p) {
      kernels.batch[width_index](w.structure.slice(p, word), w.dtype, expand, &values[p - panel],
                                 scratch.x.data() + word * kBitmapWord * width,
                                 scratch.y.data() + (p - panel) * kBitmapLanes * width, word == 0);
    }
  }
}

Status Batch(const BitmapKernels& kernels, const BitmapMatrix& w, const LinearArgs& a,
             const ParallelFor& parallel_for) {
  const BitmapStructure& s = w.structure;
  const int64_t groups = (s.panels + kGroupPanels - 1) / kGroupPanels;
  // Only a structure that was never validated has bits beyond cols.
  const BatchOf of{kOp, w.scale, s.rows, s.cols, PaddedCols(s), kGroupRows, s.kept};
  return RunBatch(
      of, kernels.tiles, XTiles(kernels.tiles.widths, a.x_rows), a, parallel_for,
      [&](int64_t part, int64_t parts) { return groups * part / parts; },
      [&](int width) { return BatchScratch(s, width); },
      [&](int64_t first, int64_t, int width_index, BatchScratch* scratch) {
        const int64_t panel = first / kBitmapLanes;
        BatchPanels(kernels, w, panel, std::min(s.panels, panel + kGroupPanels), width_index,
                    *scratch);
      });
}

}  // namespace

const BitmapKernels& SelectBitmapKernels(IsaMask mask) {
#define SPARSEKERN_BITMAP_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kBitmapKernels_##isa_suffix;
#include "ops/bitmap_linear/kernels.inc"
#undef SPARSEKERN_BITMAP_KERNELS
  return kBitmapKernels_scalar;
}

std::string BitmapLinearKernelName(const BitmapMatrix& w, int64_t x_rows, IsaMask mask) {
  const BitmapKernels& kernels = SelectBitmapKernels(mask);
  return std::string("bitmap_linear_") + ShortName(w.dtype) +
         (x_rows <= kernels.max_decode_rows ? "_decode__" : "_batch__") + KernelSet(mask);
}

Status BitmapLinear(const BitmapMatrix& w, const LinearArgs& args,
                    const ParallelFor& parallel_for) {
  SPARSEKERN_RETURN_IF_ERROR(CheckValues(kOp, w.dtype, w.scale));
  SPARSEKERN_RETURN_IF_ERROR(CheckLinear(kOp, args, w.structure.rows, w.structure.cols));
  if (args.int8_x) return Status::InvalidValue("bitmap_linear: there is no product with int8_x");
  if (args.x_rows == 0) return Status::Ok();
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const BitmapKernels& kernels = SelectBitmapKernels(mask);
  return args.x_rows <= kernels.max_decode_rows ? Decode(kernels, w, args, parallel_for)
                                                : Batch(kernels, w, args, parallel_for);
}

}  // namespace sparsekern
