// SPDX-License-Identifier: Apache-2.0
// gqs_linear for a few rows of x, from sm_80 on: kept groups only, fp32 sums. With one row of x its
// limit is the packed bytes over the memory bandwidth; from four rows on it is shared memory, which
// gives x at 128 bytes a cycle.
//
// Blocks of threads share the matrix's tasks, equal numbers of kept groups however dense the rows
// are (docs/formats.md), each a run of them. x lies in shared memory in fp32 from beginning to end.
// For each task, row offsets and masks are turned into a table: for every unit where its columns of
// x are, its scale, and whether a row begins there. Then four threads, a quad, take a strand of
// blocks of units; a thread loads 16 bytes, four columns of 4 to 16 units, a load or two ahead, and
// multiplies them. Where a row begins the quad writes the sum of the row before. What a strand has
// of a row that began earlier, and of its last, is added across the quads of a warp by shuffles,
// across warps and tasks in order by one thread, and across blocks of threads by the kernel that
// finishes: results are deterministic, and rows need no atomics.
#include "base/cuda/launch.h"
#include "ops/gqs_linear/cuda_launch.h"

namespace sparsekern::cuda {
namespace {

constexpr uint32_t kAll = 0xffffffffu;
// Loads of a thread that are under way together.
template <int M>
constexpr int kAhead = M == 4 ? 1 : 2;

// What a warp has of the rows of a task: of the one that is open when it begins, and of the one
// that it leaves open.
struct WarpSums {
  float lead[kGqsDecodeRowsAtOnce], tail[kGqsDecodeRowsAtOnce];
  int tail_row;
  bool begins;  // whether any row does; else `lead` is all that there is
};

struct Shared {
  GqsLayout layout;
  GqsEntry entry[kGqsEntries];
  float zero[kGqsEntries];
  int row[kGqsEntries];                         // of units where one begins
  int kept[kGqsWarps];                          // of the bytes of the mask that a warp has
  float head[kGqsQuads][kGqsDecodeRowsAtOnce];  // of strands where a row begins: before it
  WarpSums sums[kGqsWarps];
  GqsOpenRow open[kGqsDecodeRowsAtOnce];
};
static_assert(sizeof(Shared) <= kGqsDecodeBytes);

__device__ __forceinline__ void PutSum(const GqsCudaArgs& a, int x_row, int64_t row, float sum) {
  if (x_row < a.problem.x_rows) a.partial[int64_t{x_row} * a.problem.rows + row] = sum;
}

// x, [M rows] from first_x on, in the order of GqsSlot; what is not there as zeros.
template <int M>
__device__ __forceinline__ void FillX(const GqsCudaArgs& a, const GqsLayout& s, int first_x,
                                      float* x_tile) {
  const int slots = a.plan.slots;
  const int columns = static_cast<int>(GqsUnitsOfX(s) + 1) * kGqsUnit;
  for (int m = 0; m < M; ++m) {
    const int64_t there = first_x + m < a.problem.x_rows ? s.cols : 0;
    for (int k = static_cast<int>(threadIdx.x); k < columns; k += kGqsThreads) {
      const float v =
          k < there ? LoadAsFloat(a.x, int64_t{first_x + m} * a.x_stride + k, a.problem.x_dtype)
                    : 0.0f;
      float* to = x_tile + GqsColumnAt(k, slots);
      if constexpr (M == 1) {
        for (int copy = 0; copy < slots; ++copy) to[copy * kGqsUnit] = v;
      } else {
        to[m * kGqsUnit] = v;
      }
    }
  }
}

// The table of a task. Its last writes are before a barrier of the block.
__device__ __forceinline__ void MakeTable(const GqsCudaArgs& a, const GqsLayout& s, int64_t task,
                                          const GqsTask& t, Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int slots = a.plan.slots;
  const uint32_t nothing = GqsUnitAt(GqsUnitsOfX(s), slots);
  // Units of other tasks, and what a mask with too few bits would leave out, meet zeros.
  for (int u = thread; u < t.blocks << s.block_shift; u += kGqsThreads) {
    const bool ours = u >= t.begin && u < t.end;
    const int64_t group = ((t.first_block << s.block_shift) + u) >> s.unit_shift;
    shared.entry[GqsEntryAt(u)] = GqsEntry{nothing, ours ? GroupScale(a, group) : 0.0f};
    if (s.zeros) {
      shared.zero[GqsEntryAt(u)] = ours ? GroupScale(a, s.groups + group) : 0.0f;
    }
  }
  // Every thread takes a byte of the masks at a time.
  const int64_t first_row = GqsTaskRow(s, a.structure, task);
  GqsMaskCursor at = GqsFirstByte(s, first_row, thread);
  int64_t left = (s.rows - first_row) * s.mask_bytes;
  int64_t kept = GqsRowStart(s, a.structure, first_row);
  do {
    const uint32_t bits = at.row < s.rows ? GqsMaskByte(s, a.structure, at.row, at.byte) : 0;
    int before = __popc(bits);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kAll, before, step);
      before += lane >= step ? other : 0;
    }
    if (lane == 31) shared.kept[warp] = before;
    __syncthreads();
    int64_t group = kept + before - __popc(bits);
#pragma unroll 4
    for (int w = 0; w < kGqsWarps; ++w) {
      group += w < warp ? shared.kept[w] : 0;
      kept += shared.kept[w];
    }
    if (bits != 0) {
      GqsPutEntries(s, t, at, bits, group, GqsRowStart(s, a.structure, at.row), slots, shared.entry,
                    shared.row);
    }
    at = GqsNextByte(s, at);
    left -= kGqsThreads;
    __syncthreads();
  } while (kept < t.end_group && left > 0);
}

// The sums of a quad along its strand; those of M rows of x in the order of GqsRowOfX.
template <int M>
struct Strand {
  float sum[M] = {};
  int row = -1;  // the last that began here

  // All four threads then have the sum of the four.
  __device__ __forceinline__ void AddUp() {
    const uint32_t quad = 0xfu << (threadIdx.x % 32 & 28);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      sum[m] += __shfl_xor_sync(quad, sum[m], 1);
      sum[m] += __shfl_xor_sync(quad, sum[m], 2);
    }
  }
  __device__ __forceinline__ void Begin(const GqsCudaArgs& a, Shared& shared, int first_x,
                                        int next) {
    AddUp();
    const int quad = static_cast<int>(threadIdx.x) / 4;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (threadIdx.x % 4 == 0) {
        if (row >= 0) {
          PutSum(a, first_x + GqsRowOfX(m, quad, M), row, sum[m]);
        } else {
          shared.head[quad][m] = sum[m];
        }
      }
      sum[m] = 0.0f;
    }
    row = next;
  }
};

// The units of a block, `first` and on of a task, four columns of each.
template <int B, int M>
__device__ __forceinline__ void MultiplyBlock(const GqsCudaArgs& a, Shared& shared,
                                              const float* x_tile, int first_x, uint4 raw,
                                              int first, bool zeros, Strand<M>& strand) {
  const int lane = static_cast<int>(threadIdx.x), quad = lane / 4, slots = a.plan.slots;
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  const int first_entry = GqsEntryAt(first);
#pragma unroll
  for (int j = 0; j < 32 / B; ++j) {
    const int at = first_entry + GqsEntryAt(j);
    const GqsEntry entry = shared.entry[at];
    if ((entry.at & kGqsRowBegins) != 0) strand.Begin(a, shared, first_x, shared.row[at]);
    const float* x = x_tile + (entry.at & ~kGqsRowBegins) + lane % 4 * 4;
    float code[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) code[c] = GqsCode<B>(words[c], j);
    if (zeros) {
      const float zero = shared.zero[at];
#pragma unroll
      for (int c = 0; c < 4; ++c) code[c] -= zero;
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const auto v = *reinterpret_cast<const float4*>(x + GqsSlot(m, quad, slots));
      const float dot = fmaf(code[3], v.w, fmaf(code[2], v.z, fmaf(code[1], v.y, code[0] * v.x)));
      strand.sum[m] = fmaf(entry.scale, dot, strand.sum[m]);
    }
  }
}

// What the quads of a warp have, after their strands, becomes what the warp has.
template <int M>
__device__ __forceinline__ void JoinQuads(const GqsCudaArgs& a, int first_x, Strand<M>& strand,
                                          Shared& shared) {
  WarpSums& out = shared.sums[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, quad = static_cast<int>(threadIdx.x) / 4;
  strand.AddUp();
  const bool begins = strand.row >= 0;
  const uint32_t begin = __ballot_sync(kAll, begins);
  // Whether a row begins in a quad behind this one.
  const bool later = lane < 28 && begin >> ((lane & 28) + 4) != 0;
  float lead[M], rest[M];
#pragma unroll
  for (int m = 0; m < M; ++m) lead[m] = begins ? shared.head[quad][m] : strand.sum[m];
  if constexpr (M > 1) {  // rows of x in their own order
#pragma unroll
    for (int m = 0; m < M; m += 2) {
      if ((quad & 1) != 0) {
        const float first = lead[m], tail = strand.sum[m];
        lead[m] = lead[m + 1];
        lead[m + 1] = first;
        strand.sum[m] = strand.sum[m + 1];
        strand.sum[m + 1] = tail;
      }
    }
  }
  // From each quad on, up to the next where a row begins.
  bool stop = begins;
#pragma unroll
  for (int step = 4; step < 32; step *= 2) {
    const bool other_stop = __shfl_down_sync(kAll, static_cast<int>(stop), step) != 0;
    const bool add = !stop && lane + step < 32;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const float other = __shfl_down_sync(kAll, lead[m], step);
      lead[m] += add ? other : 0.0f;
    }
    stop = stop || (add && other_stop);
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const float other = __shfl_down_sync(kAll, lead[m], 4);
    rest[m] = lane < 28 ? other : 0.0f;
  }
  if (lane == 0) out.begins = begin != 0;
  if (lane % 4 != 0) return;
#pragma unroll
  for (int m = 0; m < M; ++m) {
    if (lane == 0) out.lead[m] = lead[m];
    if (!begins) continue;
    const float sum = strand.sum[m] + rest[m];
    if (later) {
      PutSum(a, first_x + m, strand.row, sum);
    } else {
      out.tail[m] = sum;
    }
  }
  if (begins && !later) out.tail_row = strand.row;
}

template <int M>
__global__ void __launch_bounds__(kGqsThreads, 2) GqsDecodeKernel(const GqsCudaArgs a) {
  extern __shared__ __align__(16) float x_tile[];
  __shared__ Shared shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int first_x = static_cast<int>(blockIdx.y) * M;
  if (thread == 0) shared.layout = LayoutOnDevice(a);
  __syncthreads();
  // By a header that contradicts the sizes nothing may be read; the next kernel writes NaN.
  if (!shared.layout.consistent) return;
  const GqsLayout& s = shared.layout;
  FillX<M>(a, s, first_x, x_tile);

  const GqsRange tasks = GqsTasksOf(s.tasks, static_cast<int>(blockIdx.x), a.plan.blocks);
  if (thread < M) shared.open[thread] = GqsOpenRow{-1, 0.0f};
  const auto put = [&a, x_row = first_x + thread](int row, float sum) {
    if (row >= 0) {
      PutSum(a, x_row, row, sum);
    } else if (x_row < a.problem.x_rows) {
      a.carried[blockIdx.x * a.problem.x_rows + x_row] = sum;
    }
  };
  const auto end = static_cast<uint32_t>(tasks.end);
  for (auto task = static_cast<uint32_t>(tasks.begin); task < end; ++task) {
    const GqsTask t = GqsTaskOf(s, task);
    const GqsRange range = GqsStrand(t.blocks, thread / 4);
    const int count = static_cast<int>(range.end - range.begin);
    const auto* from = static_cast<const uint4*>(a.values) +
                       (t.first_block + range.begin) * (kGqsBlockBytes / 16) + thread % 4;
    const auto load = [from, count](int i) {
      return i < count ? __ldg(from + i * (kGqsBlockBytes / 16)) : make_uint4(0, 0, 0, 0);
    };
    uint4 raw[kAhead<M>];
#pragma unroll
    for (int i = 0; i < kAhead<M>; ++i) raw[i] = load(i);
    MakeTable(a, s, task, t, shared);

    Strand<M> strand;
    int unit = static_cast<int>(range.begin) << s.block_shift;
#pragma unroll 1
    for (int i = 0; i < count; ++i, unit += 1 << s.block_shift) {
      const uint4 now = raw[0];
#pragma unroll
      for (int j = 0; j + 1 < kAhead<M>; ++j) raw[j] = raw[j + 1];
      raw[kAhead<M> - 1] = load(i + kAhead<M>);
      switch (s.bits) {
        case 2: MultiplyBlock<2, M>(a, shared, x_tile, first_x, now, unit, s.zeros, strand); break;
        case 4: MultiplyBlock<4, M>(a, shared, x_tile, first_x, now, unit, s.zeros, strand); break;
        default: MultiplyBlock<8, M>(a, shared, x_tile, first_x, now, unit, s.zeros, strand); break;
      }
    }
    __syncwarp();
    JoinQuads<M>(a, first_x, strand, shared);
    __syncthreads();  // the table has been read, too
    if (thread < M) {
#pragma unroll 1
      for (const WarpSums& w : shared.sums) {
        shared.open[thread].Meet(w.lead[thread], w.begins, w.tail[thread], w.tail_row, put);
      }
    }
  }
  if (thread < M) shared.open[thread].Close(put);
}

// y from the sums of rows and of what later blocks of threads had of them.
__global__ void GqsFinishKernel(const GqsCudaArgs a) {
  const GqsLayout s = LayoutOnDevice(a);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t rows = a.problem.rows;
  if (i >= a.problem.x_rows * rows) return;
  const int64_t m = i / rows, row = i % rows;
  float sum = 0.0f;
  if (s.consistent) {
    const GqsSplit split = GqsSplitOf(s, a.structure, row, a.plan.blocks);
    if (split.any) sum = a.partial[i];
    for (int block = split.first; block < split.end; ++block) {
      sum += a.carried[block * a.problem.x_rows + m];
    }
    sum *= RowFactor(a, s, row);
  }
  StoreFloat(a.y, i, a.problem.x_dtype, Finish(a, s.consistent, row, sum));
}

template <int M>
cudaError_t LaunchForRows(const GqsCudaArgs& a, cudaStream_t stream) {
  const auto kernel = GqsDecodeKernel<M>;
  const cudaError_t error = AllowSharedMemory(kernel);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(a.plan.blocks),
                  static_cast<unsigned>(DivideUp(a.problem.x_rows, M)));
  kernel<<<grid, kGqsThreads, static_cast<size_t>(a.plan.shared_bytes), stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchGqsDecode(const GqsCudaArgs& a, cudaStream_t stream) {
  const cudaError_t error = a.plan.rows_of_x == 1   ? LaunchForRows<1>(a, stream)
                            : a.plan.rows_of_x == 2 ? LaunchForRows<2>(a, stream)
                                                    : LaunchForRows<4>(a, stream);
  if (error != cudaSuccess) return error;
  const int64_t n = a.problem.x_rows * a.problem.rows;
  GqsFinishKernel<<<static_cast<unsigned>(DivideUp(n, 256)), 256, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace sparsekern::cuda
