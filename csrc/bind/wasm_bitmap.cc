// SPDX-License-Identifier: Apache-2.0
// The C functions that the WebAssembly module exports for the format bitmap; the rules are those of
// wasm_api.cc.
#include <cstdint>

#include "bind/wasm_api.h"
#include "sparsekern/bitmap.h"
#include "sparsekern/bitmap_linear.h"

using sparsekern::BitmapMatrix;
using sparsekern::BitmapPacker;
using namespace sparsekern::wasm;

SPARSEKERN_EXPORT_MATRIX(bitmap, Bitmap)

SPARSEKERN_EXPORT(sk_bitmap_kept) uint32_t sk_bitmap_kept(const BitmapMatrix* matrix) {
  return static_cast<uint32_t>(matrix->structure.kept);
}

// As sk_packer_new.
SPARSEKERN_EXPORT(sk_bitmap_packer_new)
BitmapPacker* sk_bitmap_packer_new(const void* dense, uint32_t dtype, uint32_t rows, uint32_t cols,
                                   const uint8_t* mask) {
  return NewPacker<BitmapPacker>("bitmap_pack", dtype, [&](BitmapPacker* packer) {
    return packer->Plan(dense, DTypeOf(dtype), rows, cols, mask);
  });
}
SPARSEKERN_EXPORT_PACKER(sk_bitmap_packer, BitmapPacker, value_count)
