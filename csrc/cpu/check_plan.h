#pragma once

#include "cpu/tree_attention.h"

namespace tts {

// Throws ArgumentError unless every index of the plan stays within its arrays, blocks and segments follow
// each other as tree_attention walks them, and each query's segments hold as many pages as it sees, its own
// token's page among them.
void check_plan(const PlanView& plan, int num_pool_pages);

// Throws ArgumentError unless a selection's rows of `mask_words` words have a bit for every page that a query
// of the plan sees.
void check_mask(const PlanView& plan, int64_t mask_words);

}  // namespace tts
