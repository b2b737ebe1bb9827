// Keeping the summaries of pages (SummaryView) up to date with their keys.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kv_layout.h"

namespace tts {

struct FilledPage {
  int page;
  int filled;  // its first so many slots hold keys
};

// Computes the summaries of these pages of one head anew. A mean is a float32 sum in the order of the slots,
// divided by their number and rounded once; a quarter without keys repeats the one before.
void summarize_pages(const KVView& kv, int head, const std::vector<FilledPage>& pages,
                     const SummaryView& summaries);

// Copies the summaries of one layer from page to page, (source, destination) pairs in order.
void copy_summaries(const SummaryView& summaries, const KVView& kv, const int32_t* copies,
                    int64_t num_copies);

}  // namespace tts
