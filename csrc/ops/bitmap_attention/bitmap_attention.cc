// SPDX-License-Identifier: Apache-2.0
// Checks, the split into parts of a sequence, and the way from parts to the result.
#include "sparsekern/bitmap_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/tiles.h"
#include "ops/bitmap_attention/kernels.h"

namespace sparsekern {
namespace {

constexpr char kOp[] = "bitmap_attention";
// Tokens of one KV head that one piece of work takes: fixed, so that sums do not depend on the
// number of threads.
constexpr int64_t kPartTokens = 512;
// Tokens whose expanded rows lie in the first-level cache at a time: 16 KB at a head_dim of 256.
constexpr int kKeptTokens = 16;
constexpr float kLowest = -3.402823466e38f;

const BitmapAttentionKernels& SelectKernels(IsaMask mask) {
#define SPARSEKERN_BITMAP_ATTENTION_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return kBitmapAttentionKernels_##isa_suffix;
#include "ops/bitmap_attention/kernels.inc"
#undef SPARSEKERN_BITMAP_ATTENTION_KERNELS
  return kBitmapAttentionKernels_scalar;
}

// Not always that of its tile kernels.
const char* KernelSet(IsaMask mask) {
#define SPARSEKERN_BITMAP_ATTENTION_KERNELS(isa_flag, isa_suffix) \
  if ((mask & isa_flag) != 0) return #isa_suffix;
#include "ops/bitmap_attention/kernels.inc"
#undef SPARSEKERN_BITMAP_ATTENTION_KERNELS
  return "scalar";
}

// What every piece of work of a call shares.
struct Call {
  const BitmapAttentionKernels& kernels;
  const BitmapKvPages& pages;
  const BitmapAttentionArgs& a;
  int64_t group;   // query heads of a KV head
  int64_t chunks;  // of them
  int64_t padded;  // query heads with those that fill up the last chunk
  int64_t stride;  // head_dim rounded up to 16

  int ChunkHeads(int64_t chunk) const {
    return group - chunk * kKvChunk == 1 ? 1 : static_cast<int>(kKvChunk);
  }
  int64_t Window(int64_t b) const { return a.window_lengths != nullptr ? a.window_lengths[b] : 0; }
  int64_t Start(int64_t b) const {
    return a.starts != nullptr ? std::max<int64_t>(0, a.starts[b]) : 0;
  }
  int64_t PartsOf(int64_t b) const {
    return std::max<int64_t>(1, (pages.lengths[b] + kPartTokens - 1) / kPartTokens);
  }
  // Floats of a part's result: acc[padded][stride], m[padded], sum[padded].
  int64_t PartFloats() const { return padded * (stride + 2); }
};

template <DType D>
float ElementAs(const uint8_t* p) {
  if constexpr (D == DType::kF32) {
    float v;
    std::memcpy(&v, p, sizeof v);
    return v;
  } else {
    uint16_t v;
    std::memcpy(&v, p, sizeof v);
    return D == DType::kBF16 ? F32FromBF16(v) : F32FromF16(v);
  }
}

// Scores for a q that is not finite: multiplies by kept channels only, one at a time.
template <DType D>
void ExactScores(const KvRows& rows, int begin, int end, const float* q, int64_t stride, int heads,
                 float* s) {
  for (int t = begin; t < end; ++t) {
    const uint8_t* mask = rows.masks + t * (rows.head_dim / 8);
    for (int h = 0; h < heads; ++h) {
      const uint8_t* values = rows.values + t * rows.keep * static_cast<int>(SizeOf(D));
      float sum = 0.0f;
      for (int c = 0; c < rows.head_dim; ++c) {
        if ((mask[c / 8] >> (c % 8) & 1) == 0) continue;
        sum += ElementAs<D>(values) * q[h * stride + c];
        values += SizeOf(D);
      }
      s[(t - begin) * heads + h] = sum;
    }
  }
}

// What a thread needs beside a part's result.
struct ThreadScratch {
  explicit ThreadScratch(const Call& call)
      : q(call.padded * call.stride), s(call.chunks * kScores), kept(kKeptTokens * call.stride) {
    // Kernels of few lanes expand head_dim channels and no more; the rest up to stride stays 0.
    if (kept.data() == nullptr) return;
    std::fill(kept.data(), kept.data() + kKeptTokens * call.stride, 0.0f);
  }
  bool ok() const { return q.data() != nullptr && s.data() != nullptr && kept.data() != nullptr; }

  static constexpr int64_t kScores = kBitmapKvTokens * kKvChunk + 16;
  Scratch q, s, kept;
};

// The work on one part of one sequence and KV head.
class Part {
 public:
  // result: PartFloats().
  Part(const Call& call, const ThreadScratch& scratch, int64_t b, int64_t h, float* result)
      : call_(call),
        q_(scratch.q.data()),
        s_(scratch.s.data()),
        kept_(scratch.kept.data()),
        b_(b),
        h_(h),
        acc_(result),
        m_(result + call.padded * call.stride),
        sum_(m_ + call.padded) {
    std::memset(result, 0, sizeof(float) * static_cast<size_t>(call.PartFloats()));
    std::fill(m_, m_ + call.padded, kLowest);
    std::memset(q_, 0, sizeof(float) * static_cast<size_t>(call.padded * call.stride));
    const int64_t head_dim = call.pages.layout.head_dim;
    const auto* q = static_cast<const uint8_t*>(call.a.q) +
                    (b * call.a.heads + h * call.group) * head_dim * Element();
    for (int64_t g = 0; g < call.group; ++g) {
      float* row = q_ + g * call.stride;
      ToFloat(q + g * head_dim * Element(), row);
      for (int64_t c = 0; c < head_dim; ++c) finite_ = finite_ && std::isfinite(row[c]);
    }
    // ExactScores meets channels as they are.
    for (int64_t g = 0; finite_ && g < call.group; ++g) Arrange(q_ + g * call.stride);
  }

  // Tokens in the pages.
  void Pages(int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t page = begin / kBitmapKvTokens;
      const int64_t until = std::min(end, (page + 1) * kBitmapKvTokens);
      OnePage(call_.pages.Page(b_, page, h_), static_cast<int>(begin % kBitmapKvTokens),
              static_cast<int>(until - page * kBitmapKvTokens));
      begin = until;
    }
  }

  // Tokens in the window.
  void Window(int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t += kKeptTokens) {
      const int tokens = static_cast<int>(std::min<int64_t>(kKeptTokens, end - t));
      Gather(call_.a.window_k, t, tokens, finite_);
      for (int64_t c = 0; c < call_.chunks; ++c) {
        call_.kernels.dense_scores[Index(c)](kept_, tokens, Q(c), call_.stride, Scores(c));
        Softmax(c, tokens);
      }
      Gather(call_.a.window_v, t, tokens, true);
      for (int64_t c = 0; c < call_.chunks; ++c) {
        call_.kernels.dense_values[Index(c)](kept_, tokens, Scores(c), call_.stride, Acc(c));
      }
    }
  }

 private:
  int64_t Element() const { return call_.pages.layout.element(); }
  int Index(int64_t chunk) const { return KvChunkIndex(call_.ChunkHeads(chunk)); }
  float* Q(int64_t chunk) const { return q_ + chunk * kKvChunk * call_.stride; }
  float* Acc(int64_t chunk) const { return acc_ + chunk * kKvChunk * call_.stride; }
  float* Scores(int64_t chunk) const { return s_ + chunk * ThreadScratch::kScores; }

  void ToFloat(const void* row, float* out) const {
    call_.kernels.tiles.expand[static_cast<int>(call_.a.dtype)](row, call_.pages.layout.head_dim,
                                                                out);
  }

  void Softmax(int64_t chunk, int tokens) const {
    call_.kernels.softmax[Index(chunk)](Scores(chunk), tokens, call_.a.scale, call_.a.softcap,
                                        m_ + chunk * kKvChunk, sum_ + chunk * kKvChunk, Acc(chunk),
                                        call_.stride);
  }

  void Arrange(float* row) const {
    const KvOrderFn arrange = call_.kernels.arrange[static_cast<int>(call_.a.dtype)];
    if (arrange != nullptr) arrange(row, static_cast<int>(call_.pages.layout.head_dim));
  }

  void Gather(const void* window, int64_t begin, int tokens, bool arranged) const {
    const int64_t head_dim = call_.pages.layout.head_dim;
    const auto* slots = static_cast<const uint8_t*>(window) + (b_ * call_.pages.kv_heads + h_) *
                                                                  call_.a.window_slots * head_dim *
                                                                  Element();
    for (int t = 0; t < tokens; ++t) {
      float* row = kept_ + t * call_.stride;
      ToFloat(slots + (begin + t) % call_.a.window_slots * head_dim * Element(), row);
      std::fill(row + head_dim, row + call_.stride, 0.0f);
      if (arranged) Arrange(row);
    }
  }

  void OnePage(const uint8_t* page, int begin, int end) const {
    const BitmapKvLayout& layout = call_.pages.layout;
    const int dtype = static_cast<int>(layout.dtype);
    const int head_dim = static_cast<int>(layout.head_dim);
    const BitmapAttentionKernels& kernels = call_.kernels;
    const KvRows k{page + layout.k_values(), page + layout.k_masks(),
                   static_cast<int>(layout.k_keep), head_dim};
    const KvRows v{page + layout.v_values(), page + layout.v_masks(),
                   static_cast<int>(layout.v_keep), head_dim};
    const int64_t stride = call_.stride;
    if (!finite_) {
      constexpr decltype(&ExactScores<DType::kF32>) kExact[] = {
          ExactScores<DType::kF32>, ExactScores<DType::kBF16>, ExactScores<DType::kF16>};
      for (int64_t c = 0; c < call_.chunks; ++c) {
        kExact[dtype](k, begin, end, Q(c), stride, call_.ChunkHeads(c), Scores(c));
      }
    } else if (call_.chunks == 1) {
      kernels.scores[dtype][Index(0)](k, begin, end, q_, stride, s_, nullptr);
    } else {
      ForEachBlock(begin, end, [&](int from, int until) {
        kernels.scores_keep[dtype](k, from, until, q_, stride, s_ + (from - begin) * kKvChunk,
                                   kept_);
        for (int64_t c = 1; c < call_.chunks; ++c) {
          kernels.dense_scores[Index(c)](kept_, until - from, Q(c), stride,
                                         Scores(c) + (from - begin) * call_.ChunkHeads(c));
        }
      });
    }
    for (int64_t c = 0; c < call_.chunks; ++c) Softmax(c, end - begin);
    if (call_.chunks == 1) {
      kernels.values[dtype][Index(0)](v, begin, end, s_, stride, acc_, nullptr);
    } else {
      ForEachBlock(begin, end, [&](int from, int until) {
        kernels.values_keep[dtype](v, from, until, s_ + (from - begin) * kKvChunk, stride, acc_,
                                   kept_);
        for (int64_t c = 1; c < call_.chunks; ++c) {
          kernels.dense_values[Index(c)](kept_, until - from,
                                         Scores(c) + (from - begin) * call_.ChunkHeads(c), stride,
                                         Acc(c));
        }
      });
    }
  }

  template <typename F>
  static void ForEachBlock(int begin, int end, const F& f) {
    for (int t = begin; t < end; t += kKeptTokens) f(t, std::min(end, t + kKeptTokens));
  }

  const Call& call_;
  float* q_;
  float* s_;
  float* kept_;
  int64_t b_, h_;
  float* acc_;
  float* m_;
  float* sum_;
  bool finite_ = true;
};

// The results of a sequence's parts become those of its query heads.
void Merge(const Call& call, const float* parts, int64_t count, int64_t b, int64_t h, float* row) {
  const int64_t head_dim = call.pages.layout.head_dim;
  for (int64_t g = 0; g < call.group; ++g) {
    const auto m = [&](int64_t part) {
      return parts[part * call.PartFloats() + call.padded * call.stride + g];
    };
    const auto sum = [&](int64_t part) {
      return parts[part * call.PartFloats() + call.padded * (call.stride + 1) + g];
    };
    float most = kLowest;
    for (int64_t i = 0; i < count; ++i) most = m(i) > most ? m(i) : most;
    float total = 0.0f;
    std::fill(row, row + head_dim, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      if (sum(i) == 0.0f) continue;  // a part before the first token attended to
      const float factor = std::exp(m(i) - most);
      const float* acc = parts + i * call.PartFloats() + g * call.stride;
      total += sum(i) * factor;
      for (int64_t c = 0; c < head_dim; ++c) row[c] += acc[c] * factor;
    }
    const KvOrderFn restore = call.kernels.restore[static_cast<int>(call.a.dtype)];
    if (restore != nullptr) restore(row, static_cast<int>(head_dim));
    const int64_t head = b * call.a.heads + h * call.group + g;
    // No score beyond -inf: the softmax of nothing, zeros, or of -inf alone, which is 0 / 0.
    const bool empty = most == kLowest && !std::isnan(total);
    const bool none = call.Start(b) >= call.pages.lengths[b] + call.Window(b);
    if (empty && !none) std::fill(row, row + head_dim, __builtin_nanf(""));
    const float inverse = empty ? (none ? 0.0f : 1.0f) : 1.0f / total;
    for (int64_t c = 0; c < head_dim; ++c) row[c] *= inverse;
    call.kernels.tiles.narrow[static_cast<int>(call.a.dtype)](
        row, head_dim,
        static_cast<uint8_t*>(call.a.out) + head * head_dim * call.pages.layout.element());
    if (call.a.lse != nullptr) {
      call.a.lse[head] = empty ? -__builtin_inff() : most + std::log(total);
    }
  }
}

Status Check(const BitmapKvPages& p, const BitmapAttentionArgs& a) {
  SPARSEKERN_RETURN_IF_ERROR(CheckBitmapKv(kOp, p, 0));
  if (a.dtype != p.layout.dtype) {
    return Status::InvalidType(std::string(kOp) + ": q must have the dtype of the pages (" +
                               Name(p.layout.dtype) + "), got " + Name(a.dtype));
  }
  if (p.kv_heads < 1 || a.heads < 1 || a.heads % p.kv_heads != 0) {
    return Status::InvalidValue(std::string(kOp) + ": heads of q must be a multiple of kv_heads (" +
                                std::to_string(p.kv_heads) + "), got " + std::to_string(a.heads));
  }
  if (!(a.softcap >= 0.0f) || std::isinf(a.softcap)) {
    return Status::InvalidValue(std::string(kOp) + ": softcap must be finite and at least 0, got " +
                                std::to_string(a.softcap));
  }
  for (int64_t b = 0; a.window_lengths != nullptr && b < p.batch; ++b) {
    if (a.window_lengths[b] < 0 || a.window_lengths[b] > a.window_slots) {
      return Status::InvalidValue(std::string(kOp) + ": window_lengths[" + std::to_string(b) +
                                  "] must be in [0, " + std::to_string(a.window_slots) + "], got " +
                                  std::to_string(a.window_lengths[b]));
    }
  }
  return Status::Ok();
}

}  // namespace

Status BitmapAttention(const BitmapKvPages& p, const BitmapAttentionArgs& a,
                       const ParallelFor& parallel_for) {
  SPARSEKERN_RETURN_IF_ERROR(Check(p, a));
  IsaMask mask = 0;
  SPARSEKERN_RETURN_IF_ERROR(ActiveIsa(&mask));
  const int64_t group = a.heads / p.kv_heads;
  const int64_t chunks = (group + kKvChunk - 1) / kKvChunk;
  const Call call{SelectKernels(mask),
                  p,
                  a,
                  group,
                  chunks,
                  chunks * kKvChunk,
                  (p.layout.head_dim + 15) / 16 * 16};
  // Where the parts of each sequence begin, per KV head.
  std::vector<int64_t> first(static_cast<size_t>(p.batch) + 1, 0);
  for (int64_t b = 0; b < p.batch; ++b) first[b + 1] = first[b] + call.PartsOf(b);
  const int64_t parts = first[p.batch] * p.kv_heads;
  const Scratch results(parts * call.PartFloats());
  if (results.data() == nullptr) return Status::OutOfMemory(std::string(kOp) + ": no memory");
  const auto result_of = [&](int64_t b, int64_t h) {
    return results.data() + (first[b] * p.kv_heads + h * call.PartsOf(b)) * call.PartFloats();
  };
  std::atomic<bool> failed{false};
  ForEachRange(parallel_for, parts, [&](int64_t begin, int64_t end) {
    const ThreadScratch scratch(call);
    if (!scratch.ok()) {
      failed = true;
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const auto next = std::upper_bound(first.begin(), first.end(), i / p.kv_heads);
      const int64_t b = next - first.begin() - 1;
      const int64_t of_sequence = call.PartsOf(b);
      const int64_t h = (i - first[b] * p.kv_heads) / of_sequence;
      const int64_t part = (i - first[b] * p.kv_heads) % of_sequence;
      Part work(call, scratch, b, h, result_of(b, h) + part * call.PartFloats());
      const int64_t length = p.lengths[b];
      const int64_t start = call.Start(b);
      work.Pages(std::max(start, part * kPartTokens), std::min(length, (part + 1) * kPartTokens));
      if (part + 1 == of_sequence) {
        work.Window(std::max(start, length), length + call.Window(b));
      }
    }
  });
  if (failed) return Status::OutOfMemory(std::string(kOp) + ": no memory");
  const Scratch row(call.stride);
  if (row.data() == nullptr) return Status::OutOfMemory(std::string(kOp) + ": no memory");
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      Merge(call, result_of(b, h), call.PartsOf(b), b, h, row.data());
    }
  }
  return Status::Ok();
}

std::string BitmapAttentionKernelName(DType dtype, IsaMask mask) {
  return std::string("bitmap_attention_") + ShortName(dtype) + "__" + KernelSet(mask);
}

}  // namespace sparsekern
