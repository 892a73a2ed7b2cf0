// SPDX-License-Identifier: Apache-2.0
// The part that the decode kernels share: a warp streams a range of a panel's words, their values
// and the rows of x through shared memory, slice after slice. Device code only.
//
// Where a slice's values begin is known once all bits before it are counted. So each warp of a
// block counts those of its range first (reading 1/16 of a dense 16-bit matrix; the second reading
// comes from the second-level cache), and the sums of the warps before it tell where it begins.
// From there on a lane counts four half-words at a time, 16 bytes, and a scan over the warp gives
// each of the 128 its place. Values are copied by cp.async, one or two slices ahead.
#pragma once

#include "base/cuda/launch.h"
#include "ops/bitmap_linear/cuda_launch.h"

namespace sparsekern::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Bits of words [begin, end) of a panel.
__device__ __forceinline__ int64_t CountWords(const BitmapCudaArgs& a, const BitmapLayout& s,
                                              int64_t panel, BitmapRange words) {
  const auto* bits = reinterpret_cast<const uint4*>(a.structure + SliceAt(s, panel, words.begin));
  const int64_t chunks = (words.end - words.begin) * (kSliceBytes / 16);
  int64_t count = 0;
#pragma unroll 4
  for (int64_t c = static_cast<int64_t>(threadIdx.x) % 32; c < chunks; c += 32) {
    const uint4 v = __ldg(bits + c);
    count += CountBits(v.x) + CountBits(v.y) + CountBits(v.z) + CountBits(v.w);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) count += __shfl_xor_sync(kAllLanes, count, step);
  return count;
}

// The value with which this warp's range begins. All warps of a block call it; `counts` is shared
// memory for two numbers a warp.
__device__ __forceinline__ int64_t FirstValueOf(const BitmapCudaArgs& a, const BitmapLayout& s,
                                                const BitmapWork& work, int64_t* counts) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const bool there = work.panel < s.panels;
  int64_t before = 0, own = 0;
  if (there) {
    before = CountWords(a, s, work.panel, work.before);
    if (work.range_in_block + 1 < a.plan.ranges) own = CountWords(a, s, work.panel, work.words);
  }
  if (threadIdx.x % 32 == 0) {
    counts[2 * warp] = before;
    counts[2 * warp + 1] = own;
  }
  __syncthreads();
  if (!there) return 0;
  int64_t first = PanelFirst(a.structure, work.panel, a.problem.value_count);
  const int64_t* of_panel = counts + 2 * work.panel_in_block * a.plan.ranges;
  for (int i = 0; i < a.plan.ranges; ++i) {
    first += of_panel[2 * i];
    if (i < work.range_in_block) first += of_panel[2 * i + 1];
  }
  return first;
}

// A slice in shared memory, as offsets into it.
struct Slice {
  uint32_t entries;  // of its 32 half-words
  uint32_t values;   // to be added to an entry's `at`, modulo 2^32
  uint32_t x;        // rows XStride apart
};

template <typename V, int RowsOfX>
class Stream {
 public:
  // `memory`: this warp's WarpBytes of `shared`. x rows from first_x on.
  __device__ __forceinline__ Stream(const BitmapCudaArgs& a, const BitmapLayout& s,
                                    const BitmapWork& work, int64_t first_value, int64_t first_x,
                                    uint8_t* shared, uint32_t memory)
      : a_(a),
        shared_(shared),
        base_(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
        memory_(memory),
        x_bytes_(a.problem.x_dtype == DType::kF32 ? 4 : 2),
        stage_bytes_(StageBytes(kBytes, x_bytes_, RowsOfX)),
        slices_(work.panel < s.panels ? static_cast<int>(work.words.end - work.words.begin) : 0),
        first_col_(work.words.begin * kBitmapCols),
        first_x_(first_x),
        group_at_(first_value * kBytes),
        bits_(a.structure + SliceAt(s, slices_ > 0 ? work.panel : 0, work.words.begin)) {}

  // Calls consume(slice) for each slice in order, by all lanes.
  template <typename Consume>
  __device__ __forceinline__ void Run(Consume& consume) {
    raw_ = LoadGroup(0);
    for (int t = 0; t < kStages - 1; ++t) Issue(t);
    for (int t = 0; t < slices_; ++t) {
      Issue(t + kStages - 1);
      WaitCopies<kStages - 1>();
      __syncwarp();
      const uint32_t entries = EntriesOf(t);
      const uint32_t stage = StageOf(t);
      const auto begin = *reinterpret_cast<const uint2*>(shared_ + entries);
      consume(Slice{entries, stage + InCopy(0, begin.y), stage + CopyBytes(kBytes)});
      __syncwarp();
    }
    WaitCopies<0>();
  }

 private:
  static constexpr int kBytes = static_cast<int>(sizeof(V));
  static constexpr int kStages = StagesOf(kBytes, RowsOfX);

  __device__ __forceinline__ uint32_t GroupOf(int t) const {
    return memory_ + static_cast<uint32_t>(t / kGroupSlices % 2 * kEntryBytes);
  }
  __device__ __forceinline__ uint32_t EntriesOf(int t) const {
    return GroupOf(t) + static_cast<uint32_t>(t % kGroupSlices * kSliceHalves * 8);
  }
  __device__ __forceinline__ uint32_t StageOf(int t) const {
    return memory_ + 2 * kEntryBytes + static_cast<uint32_t>(t % kStages * stage_bytes_);
  }

  // This lane's four half-words of the group that begins with slice t; none beyond the range.
  __device__ __forceinline__ uint4 LoadGroup(int t) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (t + lane / (kSliceHalves / 4) >= slices_) return make_uint4(0, 0, 0, 0);
    return __ldg(reinterpret_cast<const uint4*>(bits_ + t * kSliceBytes) + lane);
  }

  // Entries of the group that begins with slice t, from the bits loaded before; loads the next.
  __device__ __forceinline__ void MakeEntries(int t) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t bits[4] = {raw_.x, raw_.y, raw_.z, raw_.w};
    const int own =
        CountBits(bits[0]) + CountBits(bits[1]) + CountBits(bits[2]) + CountBits(bits[3]);
    const int until = SumOfLanesTo(lane, own);
    group_at_ += group_bytes_;
    group_bytes_ = __shfl_sync(kAllLanes, until, 31) * kBytes;
    const auto at = static_cast<uint32_t>(group_at_ + (until - own) * kBytes);
    const LaneEntries e = EntriesOfLane(bits, at, kBytes);
    auto* to = reinterpret_cast<uint4*>(shared_ + GroupOf(t)) + lane * 2;
    to[0] = make_uint4(e.of[0].bits, e.of[0].at, e.of[1].bits, e.of[1].at);
    to[1] = make_uint4(e.of[2].bits, e.of[2].at, e.of[3].bits, e.of[3].at);
    if (lane == 31) to[2] = make_uint4(0, e.end, 0, 0);
    raw_ = LoadGroup(t + kGroupSlices);
    __syncwarp();
  }

  // Begins the copies of slice t. Always a group of copies, so that waiting counts them.
  __device__ __forceinline__ void Issue(int t) {
    if (t < slices_) {
      if (t % kGroupSlices == 0) MakeEntries(t);
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const uint32_t entries = EntriesOf(t);
      const uint32_t begin = reinterpret_cast<const uint2*>(shared_ + entries)->y;
      const uint32_t end = reinterpret_cast<const uint2*>(shared_ + entries)[kSliceHalves].y;
      const uint32_t to = base_ + StageOf(t);
      const int64_t from = FirstChunk(group_at_, begin);
      const int64_t total = a_.problem.value_count * kBytes;
      const int chunks = ChunksInside(ChunksOf(begin, end), from, total);
      const int left = BytesLeft(from, total);
      const auto* values = static_cast<const uint8_t*>(a_.values) + from;
#pragma unroll 2
      for (int c = lane; c < chunks; c += 32) {
        CopyAsync(to + c * 16, values + c * 16, ChunkBytes(left, c));
      }
      // x: aligned chunks of eight or four columns, zeros beyond it.
      const int64_t col = first_col_ + int64_t{t} * kBitmapCols;
      const uint32_t x_to = to + CopyBytes(kBytes);
#pragma unroll 1
      for (int c = lane; c < XChunks(x_bytes_, RowsOfX); c += 32) {
        const XChunk chunk = XChunkOf(c, x_bytes_);
        const int64_t m = first_x_ + chunk.row, k = col + chunk.column;
        const bool there = m < a_.problem.x_rows && k < a_.x_cols;
        const auto* x =
            static_cast<const uint8_t*>(a_.x) + (there ? (m * a_.x_stride + k) * x_bytes_ : 0);
        CopyAsync(x_to + chunk.at, x, there);
      }
    }
    CommitCopies();
  }

  const BitmapCudaArgs& a_;
  uint8_t* shared_;
  uint32_t base_, memory_;
  int x_bytes_, stage_bytes_, slices_;
  int64_t first_col_, first_x_;
  int64_t group_at_;     // byte of the first value of the group whose slices are being copied
  int group_bytes_ = 0;  // and of its values
  const uint8_t* bits_;
  uint4 raw_;
};

// Values of a nibble, four however many it has: those behind the kept are other nibbles' or what
// the memory held before. `below`: BelowMask(shift).
template <typename V>
struct Nibble {
  uint32_t kept;  // bit i: column i
  V v[4];
};
template <typename V>
__device__ __forceinline__ Nibble<V> LoadNibble(const uint8_t* shared, const Slice& slice, int half,
                                                int shift, uint32_t below) {
  const auto entry = reinterpret_cast<const uint2*>(shared + slice.entries)[half];
  Nibble<V> n;
  n.kept = NibbleAt(entry.x, shift);
  constexpr int kBytes = static_cast<int>(sizeof(V));
  uint32_t at = slice.values + entry.y + CountBits(entry.x & below) * kBytes;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    n.v[i] = *reinterpret_cast<const V*>(shared + at);
    if (i < 3) at += NibbleStep(n.kept, i, kBytes);
  }
  return n;
}

// What the warps of a block have summed up, sums[warp][row of x][16 rows of W] in shared memory, to
// y, or to the parts. All threads call it, after a barrier.
__device__ __forceinline__ void StoreSums(const BitmapCudaArgs& a, int64_t first_panel,
                                          int64_t first_x, const float* sums) {
  const bool whole = a.plan.parts == 1;
  const bool consistent = whole ? Consistent(a) : true;
  const int of_warp = a.plan.rows_of_x * kBitmapRows;
  for (int i = static_cast<int>(threadIdx.x); i < a.plan.panels * of_warp;
       i += static_cast<int>(blockDim.x)) {
    const int panel = i / of_warp, within = i % of_warp;
    const int64_t m = first_x + within / kBitmapRows;
    const int64_t n = (first_panel + panel) * kBitmapRows + within % kBitmapRows;
    if (m >= a.problem.x_rows || n >= a.problem.rows) continue;
    float sum = 0.0f;
    for (int r = 0; r < a.plan.ranges; ++r) {
      sum += sums[(panel * a.plan.ranges + r) * of_warp + within];
    }
    const int64_t at = m * a.problem.rows + n;
    if (whole) {
      StoreFloat(a.y, at, a.problem.x_dtype, Finish(a, consistent, n, sum));
    } else {
      a.partial[blockIdx.y * a.problem.x_rows * a.problem.rows + at] = sum;
    }
  }
}

// The body of both kernels. MakeConsumer(shared): consumes slices, then writes its sums.
template <typename V, typename Consumer>
__device__ __forceinline__ void Decode(const BitmapCudaArgs& a) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ int64_t counts[2 * kBitmapMaxWarps];
  const BitmapLayout s = BitmapLayoutOf(a.problem.rows, a.problem.cols);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const BitmapWork work =
      WorkOfWarp(s.words, a.plan.panels, a.plan.ranges, BitmapChunks(a.problem, a.plan),
                 a.plan.parts, blockIdx.x, static_cast<int>(blockIdx.y), warp);
  const int64_t first_x = work.chunk * a.plan.rows_of_x;
  const int64_t first_value = FirstValueOf(a, s, work, counts);
  const int bytes = WarpBytes(static_cast<int>(sizeof(V)), a.problem.x_dtype == DType::kF32 ? 4 : 2,
                              a.plan.rows_of_x);
  Consumer consumer(a, shared);
  Stream<V, Consumer::kRowsOfX>(a, s, work, first_value, first_x, shared,
                                static_cast<uint32_t>(warp * bytes))
      .Run(consumer);
  __syncthreads();  // the copies become the sums
  auto* sums = reinterpret_cast<float*>(shared);
  consumer.Store(sums + warp * a.plan.rows_of_x * kBitmapRows);
  __syncthreads();
  StoreSums(a, work.panel - work.panel_in_block, first_x, sums);
}

template <typename Kernel>
cudaError_t LaunchStream(Kernel kernel, const BitmapCudaArgs& a, cudaStream_t stream) {
  const cudaError_t error = AllowSharedMemory(kernel);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(BitmapBlocks(a.problem, a.plan)),
                  static_cast<unsigned>(a.plan.parts));
  const auto threads = static_cast<unsigned>(a.plan.panels * a.plan.ranges * 32);
  kernel<<<grid, threads, static_cast<size_t>(a.plan.shared_bytes), stream>>>(a);
  const cudaError_t launched = cudaGetLastError();
  return launched == cudaSuccess && a.plan.parts > 1 ? LaunchAddParts(a, stream) : launched;
}

}  // namespace sparsekern::cuda
