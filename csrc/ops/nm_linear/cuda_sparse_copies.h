// SPDX-License-Identifier: Apache-2.0
// What one thread copies to each stage of the sparse tensor-core kernels of nm_linear: 64 columns
// of a tile's rows of W, values and words as they lie in the packed format, and of its rows of x.
// All addresses are found once and then moved on by constants. The host compiles it too: tests/cpp
// fills stages with it.
#pragma once

#include "ops/nm_linear/cuda_plan.h"

namespace sparsekern::cuda {

template <int Features, int Tokens, int Threads>
class SparseCopies {
 public:
  static constexpr int kPanels = Features / kNmPanelRows;
  static constexpr int kWordsAt = SparseWordsAt(Features);  // in a stage; its values are at 0
  static constexpr int kXAt = SparseXAt(Features);

  SPARSEKERN_HOST_DEVICE SparseCopies(const LinearCall& a, const NmLayout& s, ResultTile at,
                                      int thread) {
    const int64_t first_panel = at.feature * kPanels;
    {
      const int panel = thread / kPanelChunks, step = thread / 2 % kTileSteps, half = thread % 2;
      values_ = static_cast<const uint8_t*>(a.values) +
                ((first_panel + panel) * s.steps + step) * kStepBytes + half * 16;
      values_stride_ = s.steps * (kStepBytes * kPanelsAtOnce);
      values_to_ = ValueOffset(panel, step, half);
      panels_ = AtMost(s.panels - first_panel - panel, kPanels);
      steps_ = s.steps - step;
    }
    {
      const int panel = thread / 8, word = thread / 4 % 2, lane = thread % 4 * 4;
      words_ = a.structure + kNmHeaderBytes +
               ((first_panel + panel) * s.words + word) * kWordBytes + lane * 4;
      words_to_ = panel < kPanels ? kWordsAt + WordOffset(kPanels, panel, word, lane) : -1;
      words_left_ = first_panel + panel < s.panels ? s.words - word : 0;
    }
    {
      const int row = thread / 8, chunk = thread % 8;
      const int64_t first_row = at.token * Tokens + row;
      x_ = static_cast<const uint8_t*>(a.x) + (first_row * a.x_stride + chunk * 8) * 2;
      x_stride_ = a.x_stride * (2 * kRowsAtOnce);
      x_to_ = kXAt + RowOffset(row, chunk);
      x_rows_ = AtMost(a.problem.x_rows - first_row, Tokens);
      x_cols_ = a.x_cols - chunk * 8;
    }
  }

  // Of the next tile of columns, from the first on: copy(to, from, there) for each 16 bytes, `to`
  // in the stage; zeros where `there` is false, which is where the matrices end, and `from` then
  // nowhere.
  template <typename Copy>
  SPARSEKERN_HOST_DEVICE void Next(const Copy& copy) {
    for (int i = 0; i < kPanels / kPanelsAtOnce; ++i) {
      copy(values_to_ + i * (kPanelsAtOnce * kPanelTileBytes), values_ + i * values_stride_,
           steps_ > 0 && i * kPanelsAtOnce < panels_);
    }
    for (int i = 0; i < Tokens / kRowsAtOnce; ++i) {
      copy(x_to_ + i * (kRowsAtOnce * kTileCols * 2), x_ + i * x_stride_,
           x_cols_ > 0 && i * kRowsAtOnce < x_rows_);
    }
    if (words_to_ >= 0) copy(words_to_, words_, words_left_ > 0);
    values_ += kTileSteps * kStepBytes;
    words_ += 2 * kWordBytes;
    x_ += kTileCols * 2;
    steps_ -= kTileSteps;
    words_left_ -= 2;
    x_cols_ -= kTileCols;
  }

 private:
  static constexpr int kStepBytes = kNmPanelRows * 2;
  static constexpr int kWordBytes = kNmPanelRows * 4;
  static constexpr int kPanelChunks = kTileSteps * 2;
  static constexpr int kPanelsAtOnce = Threads / kPanelChunks;
  static constexpr int kRowsAtOnce = Threads / 8;
  static_assert(Threads % kPanelChunks == 0 && kPanels % kPanelsAtOnce == 0);
  static_assert(Threads >= kPanels * 8, "one chunk of words a thread");
  static_assert(kRowsAtOnce % 8 == 0 && Tokens % kRowsAtOnce == 0);

  SPARSEKERN_HOST_DEVICE static int AtMost(int64_t a, int b) {
    return a < b ? static_cast<int>(a) : b;
  }

  const uint8_t *values_, *words_, *x_;
  int64_t values_stride_, x_stride_;     // bytes to this thread's next panel, row
  int values_to_, words_to_, x_to_;      // in the stage
  int64_t steps_, words_left_, x_cols_;  // there are, from this tile on
  int panels_, x_rows_;                  // there are, from this thread's first on
};

}  // namespace sparsekern::cuda
