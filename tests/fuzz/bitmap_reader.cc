// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: any bytes as a bitmap matrix.
#include "round_trip.h"
#include "sparsekern/bitmap.h"

namespace sparsekern {
namespace {

struct BitmapFormat {
  using Structure = BitmapStructure;
  using Packer = BitmapPacker;
  static constexpr auto Parse = ParseBitmapStructure;
  static constexpr auto Validate = ValidateBitmap;
  static constexpr auto Unpack = UnpackBitmap;
  static constexpr auto Mask = BitmapMask;
  static Status Plan(Packer* packer, const Structure& s, const void* dense, DType dtype,
                     const uint8_t* mask) {
    return packer->Plan(dense, dtype, s.rows, s.cols, mask);
  }
};

}  // namespace
}  // namespace sparsekern

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return sparsekern::FuzzRoundTrip<sparsekern::BitmapFormat>(data, size);
}
