// SPDX-License-Identifier: Apache-2.0
// libFuzzer target: any bytes as an nm matrix.
#include "round_trip.h"
#include "sparsekern/nm.h"

namespace sparsekern {
namespace {

struct NmFormat {
  using Structure = NmStructure;
  using Packer = NmPacker;
  static constexpr auto Parse = ParseNmStructure;
  static constexpr auto Validate = ValidateNm;
  static constexpr auto Unpack = UnpackNm;
  static constexpr auto Mask = NmMask;
  static Status Plan(Packer* packer, const Structure& s, const void* dense, DType dtype,
                     const uint8_t* mask) {
    return packer->Plan(dense, dtype, s.rows, s.cols, s.n, s.m, mask);
  }
};

}  // namespace
}  // namespace sparsekern

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return sparsekern::FuzzRoundTrip<sparsekern::NmFormat>(data, size);
}
