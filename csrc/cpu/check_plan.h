#pragma once

#include "cpu/tree_attention.h"

namespace tts {

// Throws ArgumentError unless every index of the plan is within its arrays, blocks and segments are in the
// order in which tree_attention walks them, and each query's segments hold as many pages as it sees,
// including its own token's page.
void check_plan(const PlanView& plan, int num_pool_pages);

// Throws ArgumentError unless a selection row of `mask_words` words has a bit for every page that a query of
// the plan sees.
void check_mask(const PlanView& plan, int64_t mask_words);

}  // namespace tts
