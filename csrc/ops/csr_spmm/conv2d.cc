// SPDX-License-Identifier: Apache-2.0
// 1x1 convolution on NCHW activations, which are channel-major as they are: an x tile is a run of
// pixels, copied so that its rows are contiguous (at 14x14 that is worth 1.7 times: 196-byte rows
// split cache lines).
#include <algorithm>
#include <cstring>

#include "ops/csr_spmm/drivers.h"

namespace sparsekern {
namespace {

struct Geometry {
  int64_t out_height, out_width, out_pixels;
};

// Calls run(image, first output pixel, offset in the tile, pixels) for the stretches of a tile of
// output pixels (counted through the batch) that lie in one image.
template <typename F>
void ForEachRun(int64_t begin, int64_t pixels, int64_t per_image, F run) {
  for (int64_t done = 0; done < pixels;) {
    const int64_t image = (begin + done) / per_image;
    const int64_t pixel = (begin + done) % per_image;
    const int64_t n = std::min(pixels - done, per_image - pixel);
    run(image, pixel, done, n);
    done += n;
  }
}

// x tile in fp32: out[cols][width], pixels beyond the tile's zeroed.
void PackPixels(const CsrKernels& kernels, const CsrStructure& s, const CsrConv2dArgs& a,
                const Geometry& g, int64_t begin, int64_t pixels, int width, float* out) {
  const size_t element = SizeOf(a.dtype);
  const ExpandFn expand = kernels.tiles.expand[static_cast<int>(a.dtype)];
  const uint8_t* x = static_cast<const uint8_t*>(a.x);
  const int64_t plane = a.height * a.width;
  ForEachRun(begin, pixels, g.out_pixels, [&](int64_t image, int64_t pixel, int64_t at, int64_t n) {
    if (a.stride == 1) {
      const int64_t first = image * s.cols * plane + pixel;
      kernels.tiles.pack_channels[static_cast<int>(a.dtype)](
          x + static_cast<size_t>(first) * element, plane, s.cols, n, width, out + at);
      return;
    }
    for (int64_t k = 0; k < s.cols; ++k) {
      const uint8_t* channel = x + static_cast<size_t>(image * s.cols + k) * plane * element;
      float* to = out + k * width + at;
      // Row by row: convert a contiguous piece, then take every stride-th element of it.
      constexpr int64_t kLine = 256;
      float line[kLine];
      for (int64_t i = 0; i < n;) {
        const int64_t row = (pixel + i) / g.out_width * a.stride;
        const int64_t column = (pixel + i) % g.out_width;
        const int64_t run = std::min({n - i, g.out_width - column, (kLine - 1) / a.stride + 1});
        expand(channel + (row * a.width + column * a.stride) * element, (run - 1) * a.stride + 1,
               line);
        for (int64_t r = 0; r < run; ++r) to[i + r] = line[r * a.stride];
        i += run;
      }
    }
  });
  if (pixels < width) {
    for (int64_t k = 0; k < s.cols; ++k) {
      std::memset(out + k * width + pixels, 0, sizeof(float) * (width - pixels));
    }
  }
}

void StorePixels(const CsrKernels& kernels, const CsrStructure& s, const CsrConv2dArgs& a,
                 const Geometry& g, int64_t panel, int64_t begin, int64_t pixels, int width,
                 const float* y) {
  const size_t element = SizeOf(a.dtype);
  const NarrowFn narrow = kernels.tiles.narrow[static_cast<int>(a.dtype)];
  uint8_t* out = static_cast<uint8_t*>(a.y);
  const int64_t first = panel * s.panel_rows();
  const int64_t rows = PanelRows(s, panel);
  ForEachRun(begin, pixels, g.out_pixels, [&](int64_t image, int64_t pixel, int64_t at, int64_t n) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = (image * s.rows + first + r) * g.out_pixels + pixel;
      uint8_t* to = out + static_cast<size_t>(position) * element;
      narrow(y + r * width + at, n, to);
    }
  });
}

Status CheckGeometry(const CsrConv2dArgs& a) {
  if (a.batch < 0 || a.height < 0 || a.width < 0 || a.stride < 1) {
    return Status::InvalidValue("csr_conv2d: batch, height and width must be >= 0 and stride >= 1");
  }
  return Status::Ok();
}

}  // namespace

Status CsrConv2d(const CsrMatrix& w, const CsrConv2dArgs& args, const ParallelFor& parallel_for) {
  SPARSEKERN_RETURN_IF_ERROR(CheckMatrix("csr_conv2d", w, args.int8_x));
  SPARSEKERN_RETURN_IF_ERROR(CheckActivations("csr_conv2d", args.dtype, args.epilogue.activation));
  SPARSEKERN_RETURN_IF_ERROR(CheckGeometry(args));
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const BatchMode mode(mask, w, args.int8_x);
  const CsrKernels& kernels = mode.kernels;
  const CsrStructure& s = w.structure;
  Geometry g;
  g.out_height = (args.height + args.stride - 1) / args.stride;
  g.out_width = (args.width + args.stride - 1) / args.stride;
  g.out_pixels = g.out_height * g.out_width;
  const int64_t pixels = args.batch * g.out_pixels;
  if (pixels == 0) return Status::Ok();
  const auto pack = [&](const XTile& tile, float* x) {
    PackPixels(kernels, s, args, g, tile.begin, tile.rows, tile.width, x);
  };
  const auto run = [&](const XTile& tile, int64_t panel, const BatchScratch& scratch) {
    const int64_t image = tile.begin / g.out_pixels, pixel = tile.begin % g.out_pixels;
    const float* scale = PanelPart(w.scale, s, panel);
    const float* bias = PanelPart(args.epilogue.bias, s, panel);
    const int64_t rows = PanelRows(s, panel);
    if (args.dtype == DType::kF32 && !args.int8_x && pixel + tile.rows <= g.out_pixels) {
      // A tile inside one image: the kernel itself puts the channels where they belong.
      const int64_t first = (image * s.rows + panel * s.panel_rows()) * g.out_pixels + pixel;
      const PanelOutput output{static_cast<float*>(args.y) + first,
                               g.out_pixels,
                               rows,
                               tile.rows,
                               scale,
                               bias,
                               args.epilogue.activation};
      BatchPanel(mode, w, panel, tile.width_index, scratch, &output);
      return;
    }
    BatchPanel(mode, w, panel, tile.width_index, scratch, nullptr);
    kernels.tiles.finish_channels(scratch.y, rows, tile.width, scale, bias,
                                  args.epilogue.activation);
    StorePixels(kernels, s, args, g, panel, tile.begin, tile.rows, tile.width, scratch.y);
  };
  const bool done = ForEachTile(mode, w, pixels, parallel_for, pack, run);
  return done ? Status::Ok() : OutOfScratch("csr_conv2d");
}

}  // namespace sparsekern
