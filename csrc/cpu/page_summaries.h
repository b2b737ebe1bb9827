// Keeps page summaries (SummaryView) up to date with the keys.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kv_layout.h"

namespace tts {

struct FilledPage {
  int page;
  int filled;  // number of leading slots that hold keys
};

// Recomputes the summaries of these pages for one head. A mean is a float32 sum in slot order, divided by the
// number of slots and rounded once; a quarter without keys repeats the previous one.
void summarize_pages(const KVView& kv, int head, const std::vector<FilledPage>& pages,
                     const SummaryView& summaries);

// Copies one layer's summaries between pages, (source, destination) pairs in order.
void copy_summaries(const SummaryView& summaries, const KVView& kv, const int32_t* copies,
                    int64_t num_copies);

}  // namespace tts
