// SPDX-License-Identifier: Apache-2.0
// Every kernel set of pruned KV caches against sorting and sums in double; corrupt pages.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "csr_case.h"
#include "ops/bitmap_attention/kernels.h"
#include "ops/bitmap_kv_append/kernels.h"
#include "sparsekern/bitmap_attention.h"
#include "sparsekern/bitmap_kv_append.h"

namespace sparsekern::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr double kNegative = -std::numeric_limits<double>::infinity();

struct Stored {
  std::vector<uint8_t> bytes;
  std::vector<double> numbers;
};

Stored Store(const std::vector<float>& in, DType dtype) {
  Stored out;
  for (const float number : in) {
    uint32_t bits = 0;
    double exact = number;
    if (dtype == DType::kF32) {
      std::memcpy(&bits, &number, 4);
    } else {
      bits = dtype == DType::kBF16 ? BF16FromF32(number) : F16FromF32(number);
      const auto half = static_cast<uint16_t>(bits);
      exact = dtype == DType::kBF16 ? F32FromBF16(half) : F32FromF16(half);
    }
    for (size_t i = 0; i < SizeOf(dtype); ++i) {
      out.bytes.push_back(static_cast<uint8_t>(bits >> (8 * i)));
    }
    out.numbers.push_back(exact);
  }
  return out;
}

// Channels of row `at` of x that stay.
std::vector<bool> Kept(const Stored& x, int64_t at, int64_t head_dim, int64_t keep) {
  std::vector<int64_t> order(static_cast<size_t>(head_dim));
  std::iota(order.begin(), order.end(), 0);
  const auto size = [&](int64_t i) {
    return std::fabs(x.numbers[static_cast<size_t>(at * head_dim + i)]);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t i, int64_t j) { return size(i) > size(j); });
  std::vector<bool> kept(static_cast<size_t>(head_dim), false);
  for (int64_t i = 0; i < keep; ++i) {
    kept[static_cast<size_t>(order[static_cast<size_t>(i)])] = true;
  }
  return kept;
}

// One sequence with one KV head, appended in two pieces; pages in reverse order.
struct Cache {
  Cache(DType dtype, int64_t head_dim, int64_t tokens, int64_t k_keep, int64_t v_keep)
      : k(Store(RandomFloats(head_dim * tokens, 1), dtype)),
        v(Store(RandomFloats(head_dim * tokens, 2), dtype)) {
    view.layout = BitmapKvLayout{dtype, head_dim, k_keep, v_keep};
    view.page_count = (tokens + 63) / 64;
    view.kv_heads = 1;
    view.batch = 1;
    view.table_pages = view.page_count;
    for (int64_t i = view.page_count; i-- > 0;) table.push_back(static_cast<int32_t>(i));
    // Bytes of its own, so that AddressSanitizer sees a read beyond the last page.
    pages.assign(static_cast<size_t>(view.page_count * view.layout.page_bytes()), 0xff);
    view.pages = pages.data();
    view.table = table.data();
    view.lengths = &length;
    const int64_t half = tokens / 2;
    for (const int64_t size : {half, tokens - half}) {
      BitmapKvAppendArgs a;
      const size_t from = static_cast<size_t>(length * head_dim) * SizeOf(dtype);
      a.k = k.bytes.data() + from;
      a.v = v.bytes.data() + from;
      a.k_strides[2] = a.v_strides[2] = head_dim;
      a.tokens = size;
      const Status status = BitmapKvAppend(view, a, Serial());
      EXPECT_TRUE(status.ok()) << status.message();
      length += size;
    }
  }

  Stored k, v;
  std::vector<int32_t> table;
  std::vector<uint8_t> pages;
  int64_t length = 0;
  BitmapKvPages view;
};

class BitmapKvTest : public ::testing::TestWithParam<NamedIsa> {};

TEST_P(BitmapKvTest, AppendAndUnpack) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : kDTypes) {
    for (const int64_t head_dim : {8, 24, 64, 136, 256}) {
      const int64_t keeps[] = {std::max<int64_t>(1, head_dim / 3), head_dim - 1};
      Cache c(dtype, head_dim, 70, keeps[0], keeps[1]);
      std::vector<uint8_t> dense[2];
      for (auto& d : dense) d.resize(c.k.bytes.size());
      ASSERT_TRUE(BitmapKvUnpack(c.view, 70, dense[0].data(), dense[1].data()).ok());
      for (int which = 0; which < 2; ++which) {
        const Stored& x = which == 0 ? c.k : c.v;
        std::vector<uint8_t> want(x.bytes.size(), 0);
        for (int64_t t = 0; t < 70; ++t) {
          const std::vector<bool> kept = Kept(x, t, head_dim, keeps[which]);
          for (int64_t i = 0; i < head_dim; ++i) {
            if (!kept[static_cast<size_t>(i)]) continue;
            const size_t at = static_cast<size_t>(t * head_dim + i) * SizeOf(dtype);
            std::memcpy(&want[at], &x.bytes[at], SizeOf(dtype));
          }
        }
        ASSERT_EQ(dense[which], want) << Name(dtype) << " " << head_dim;
      }
    }
  }
}

TEST_P(BitmapKvTest, Attention) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : kDTypes) {
    for (const int64_t head_dim : {8, 40, 64, 72, 128, 256}) {
      for (const int64_t heads : {1, 3, 4, 5, 9}) {
        const int64_t tokens = 65 + heads, slots = 20, start = heads;
        Cache c(dtype, head_dim, tokens, head_dim / 2, std::max<int64_t>(1, head_dim / 3));
        const Stored q = Store(RandomFloats(heads * head_dim, 3), dtype);
        const Stored wk = Store(RandomFloats(slots * head_dim, 4), dtype);
        const Stored wv = Store(RandomFloats(slots * head_dim, 5), dtype);
        std::vector<uint8_t> out(q.bytes.size());
        std::vector<float> lse(static_cast<size_t>(heads));
        const int64_t window = 17;
        BitmapAttentionArgs a;
        a.dtype = dtype;
        a.q = q.bytes.data();
        a.heads = heads;
        a.window_k = wk.bytes.data();
        a.window_v = wv.bytes.data();
        a.window_slots = slots;
        a.window_lengths = &window;
        a.starts = &start;
        a.scale = 0.7f;
        a.softcap = heads == 4 ? 2.0f : 0.0f;
        a.out = out.data();
        a.lse = lse.data();
        const Status status = BitmapAttention(c.view, a, Serial());
        ASSERT_TRUE(status.ok()) << status.message();
        std::vector<std::vector<bool>> k_kept, v_kept;
        for (int64_t i = 0; i < tokens; ++i) {
          k_kept.push_back(Kept(c.k, i, head_dim, c.view.layout.k_keep));
          v_kept.push_back(Kept(c.v, i, head_dim, c.view.layout.v_keep));
        }
        const std::vector<bool> all(static_cast<size_t>(head_dim), true);
        for (int64_t h = 0; h < heads; ++h) {
          std::vector<double> scores;
          for (int64_t t = start; t < tokens + window; ++t) {
            const bool dense = t >= tokens;
            const Stored& k = dense ? wk : c.k;
            const int64_t row = dense ? t % slots : t;
            const std::vector<bool>& kept = dense ? all : k_kept[static_cast<size_t>(t)];
            double s = 0.0;
            for (int64_t i = 0; i < head_dim; ++i) {
              if (!kept[static_cast<size_t>(i)]) continue;
              s += k.numbers[static_cast<size_t>(row * head_dim + i)] *
                   q.numbers[static_cast<size_t>(h * head_dim + i)];
            }
            s *= a.scale;
            scores.push_back(a.softcap == 0.0f ? s : a.softcap * std::tanh(s / a.softcap));
          }
          const double top = *std::max_element(scores.begin(), scores.end());
          double total = 0.0;
          for (const double s : scores) total += std::exp(s - top);
          ASSERT_NEAR(lse[static_cast<size_t>(h)], top + std::log(total), 2e-5);
          for (int64_t i = 0; i < head_dim; ++i) {
            double sum = 0.0;
            for (int64_t t = start; t < tokens + window; ++t) {
              const bool dense = t >= tokens;
              if (!dense && !v_kept[static_cast<size_t>(t)][static_cast<size_t>(i)]) continue;
              const int64_t row = dense ? t % slots : t;
              sum += std::exp(scores[static_cast<size_t>(t - start)] - top) *
                     (dense ? wv : c.v).numbers[static_cast<size_t>(row * head_dim + i)];
            }
            const size_t at = static_cast<size_t>(h * head_dim + i) * SizeOf(dtype);
            float got = 0.0f;
            if (dtype == DType::kF32) {
              std::memcpy(&got, &out[at], 4);
            } else {
              uint16_t half;
              std::memcpy(&half, &out[at], 2);
              got = dtype == DType::kBF16 ? F32FromBF16(half) : F32FromF16(half);
            }
            const double want = sum / total;
            const double eps = dtype == DType::kF32 ? 0.0 : dtype == DType::kBF16 ? 4e-3 : 5e-4;
            ASSERT_NEAR(got, want, 2e-5 + eps * std::fabs(want))
                << Name(dtype) << " " << head_dim << " head " << h << " of " << heads;
          }
        }
      }
    }
  }
}

// What K pruned everywhere does not meet the infinity in q, and the window does, in the channel
// that it belongs to: there it says that those tokens weigh nothing.
TEST_P(BitmapKvTest, InfinityInOneChannelOfQ) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : kDTypes) {
    for (const int64_t head_dim : {64, 72, 128}) {
      Cache c(dtype, head_dim, 3, 4, head_dim);
      std::vector<bool> met(static_cast<size_t>(head_dim), false);
      for (int64_t t = 0; t < 3; ++t) {
        const std::vector<bool> kept = Kept(c.k, t, head_dim, 4);
        for (size_t i = 0; i < met.size(); ++i) met[i] = met[i] || kept[i];
      }
      const auto channel = std::find(met.begin(), met.end(), false) - met.begin();
      ASSERT_LT(channel, head_dim);
      std::vector<float> numbers(static_cast<size_t>(head_dim), 1.0f);
      numbers[static_cast<size_t>(channel)] = -1.0f;
      const Stored window = Store(numbers, dtype);
      std::vector<uint8_t> out[2];
      for (const int64_t tokens : {0, 1}) {
        numbers.assign(static_cast<size_t>(head_dim), 0.25f);
        if (tokens == 1) {
          numbers[static_cast<size_t>(channel)] = std::numeric_limits<float>::infinity();
        }
        const Stored q = Store(numbers, dtype);
        out[tokens].resize(q.bytes.size());
        BitmapAttentionArgs a;
        a.dtype = dtype;
        a.q = q.bytes.data();
        a.heads = 1;
        a.window_k = a.window_v = window.bytes.data();
        a.window_slots = 1;
        a.window_lengths = &tokens;
        a.out = out[tokens].data();
        ASSERT_TRUE(BitmapAttention(c.view, a, Serial()).ok());
      }
      for (size_t i = 0; i < static_cast<size_t>(head_dim); ++i) {
        float with = 0.0f, without = 0.0f;
        if (dtype == DType::kF32) {
          std::memcpy(&without, &out[0][4 * i], 4);
          std::memcpy(&with, &out[1][4 * i], 4);
        } else {
          uint16_t half[2];
          for (int o = 0; o < 2; ++o) std::memcpy(&half[o], &out[o][2 * i], 2);
          without = dtype == DType::kBF16 ? F32FromBF16(half[0]) : F32FromF16(half[0]);
          with = dtype == DType::kBF16 ? F32FromBF16(half[1]) : F32FromF16(half[1]);
        }
        ASSERT_NEAR(with, without, 1e-2 * std::fabs(without) + 1e-5) << Name(dtype) << " " << i;
      }
    }
  }
}

// Any bytes in a page are memory-safe, which AddressSanitizer sees, and unpacking refuses them.
TEST_P(BitmapKvTest, CorruptPages) {
  const ForcedIsa forced(GetParam());
  for (const DType dtype : kDTypes) {
    for (const int64_t head_dim : {8, 72, 128, 256}) {
      Cache c(dtype, head_dim, 64, 1, 1);
      std::fill(c.pages.begin() + static_cast<ptrdiff_t>(c.view.layout.k_masks()), c.pages.end(),
                uint8_t{0xff});
      const Stored q = Store(RandomFloats(6 * head_dim, 3), dtype);
      std::vector<uint8_t> out(q.bytes.size());
      BitmapAttentionArgs a;
      a.dtype = dtype;
      a.q = q.bytes.data();
      a.heads = 6;
      a.out = out.data();
      ASSERT_TRUE(BitmapAttention(c.view, a, Serial()).ok());
      const Status status = BitmapKvUnpack(c.view, 64, nullptr, nullptr);
      ASSERT_EQ(status.code(), StatusCode::kInvalidValue);
      ASSERT_EQ(status.message(),
                "bitmap_kv_unpack: the K mask of sequence 0, head 0, token 0 must keep 1 channels, "
                "got " +
                    std::to_string(head_dim));
    }
  }
}

#if !defined(__wasm__)
TEST_P(BitmapKvTest, Threads) {
  const ForcedIsa forced(GetParam());
  Cache c(DType::kBF16, 64, 1500, 32, 20);
  const Stored q = Store(RandomFloats(4 * 64, 3), DType::kBF16);
  std::vector<uint8_t> out[2];
  for (int i = 0; i < 2; ++i) {
    ThreadPool pool(1 + 2 * i);
    out[i].resize(q.bytes.size());
    BitmapAttentionArgs a;
    a.dtype = DType::kBF16;
    a.q = q.bytes.data();
    a.heads = 4;
    a.out = out[i].data();
    ASSERT_TRUE(BitmapAttention(c.view, a, pool.parallel_for()).ok());
  }
  EXPECT_EQ(out[0], out[1]);
}
#endif

std::vector<NamedIsa> CompiledKvIsas() {
  std::vector<NamedIsa> out;
#define SPARSEKERN_BITMAP_ATTENTION_KERNELS(isa_flag, isa_suffix) \
  out.push_back({#isa_suffix, isa_flag});
#include "ops/bitmap_attention/kernels.inc"
#undef SPARSEKERN_BITMAP_ATTENTION_KERNELS
  return out;
}

std::vector<NamedIsa> RunnableKvIsas() {
  std::vector<NamedIsa> out = CompiledKvIsas();
  std::erase_if(out, [](const NamedIsa& isa) { return (DetectedIsa() & isa.isa) == 0; });
  return out;
}

INSTANTIATE_TEST_SUITE_P(Isas, BitmapKvTest, ::testing::ValuesIn(RunnableKvIsas()), IsaName);

TEST(BitmapKvSelectionTest, HasASetWhereCsrHasOne) {
  std::string compiled = " ";
  for (const NamedIsa& isa : CompiledKvIsas()) compiled += std::string(isa.name) + " ";
  for (const NamedIsa& isa : CompiledIsas()) {
    EXPECT_NE(compiled.find(std::string(" ") + isa.name + " "), std::string::npos) << isa.name;
    EXPECT_EQ(BitmapKvAppendKernelName(DType::kF32, kScalar | isa.isa),
              std::string("bitmap_kv_append_f32__") + isa.name);
  }
  for (const NamedIsa& isa : CompiledKvIsas()) {
    EXPECT_EQ(BitmapAttentionKernelName(DType::kBF16, kScalar | isa.isa),
              std::string("bitmap_attention_bf16__") + isa.name);
  }
}

// Refused before anything is written.
TEST(BitmapKvEdgeTest, TokensOfTheDenseResult) {
  Cache c(DType::kF32, 8, 64, 4, 4);
  const auto refused = [&](int64_t tokens) {
    std::vector<uint8_t> out(c.k.bytes.size(), 7);
    const Status status = BitmapKvUnpack(c.view, tokens, out.data(), out.data());
    EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
    EXPECT_EQ(out, std::vector<uint8_t>(out.size(), 7));
    return std::string(status.message());
  };
  EXPECT_EQ(refused(-1), "bitmap_kv_unpack: tokens must be at least 0, got -1");
  EXPECT_EQ(refused(63), "bitmap_kv_unpack: tokens must be at least lengths[0] = 64, got 63");
}

TEST(BitmapKvEdgeTest, NegativeTokensToAppend) {
  Cache c(DType::kF32, 8, 64, 4, 4);
  BitmapKvAppendArgs a;
  a.tokens = -1;
  EXPECT_EQ(BitmapKvAppend(c.view, a, Serial()).message(),
            "bitmap_kv_append: tokens must be at least 0, got -1");
}

TEST(BitmapKvEdgeTest, NothingToAttendTo) {
  Cache c(DType::kF32, 8, 64, 4, 4);
  const std::vector<float> q(16, 1.0f);
  std::vector<float> out(16, 7.0f), lse(2);
  const int64_t start = 64;
  BitmapAttentionArgs a;
  a.q = q.data();
  a.heads = 2;
  a.starts = &start;
  a.out = out.data();
  a.lse = lse.data();
  ASSERT_TRUE(BitmapAttention(c.view, a, Serial()).ok());
  EXPECT_EQ(out, std::vector<float>(16, 0.0f));
  EXPECT_EQ(lse[0], kNegative);
}

}  // namespace
}  // namespace sparsekern::testing
