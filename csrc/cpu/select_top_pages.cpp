#include "cpu/select_top_pages.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

#include "common/error.h"
#include "cpu/check_plan.h"
#include "cpu/kv_layout.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

// Scores that make waking a thread worthwhile (about 100 microseconds).
constexpr int64_t kMinScoresPerThread = int64_t{1} << 15;

struct Row {
  int32_t branch;
  int32_t token;   // row of scores and mask
  int32_t seen;    // columns
  int32_t tail;    // first column of the tail; `seen` if there is none
  int32_t budget;  // < seen
};

// A page that some row of a group may take, in order of first occurrence.
struct Candidate {
  double score;
  int32_t column;
};

class Run {
 public:
  Run(const SelectTopPagesParams& params, int num_threads)
      : p_(params), words_((params.num_columns + 31) / 32) {
    std::fill_n(p_.mask, p_.num_kv_heads * p_.num_queries * words_, 0);
    find_groups();
    const auto groups = static_cast<int64_t>(group_begin_.size()) - 1;
    const int64_t scores = static_cast<int64_t>(rows_.size()) * p_.num_kv_heads * p_.num_columns;
    num_threads = static_cast<int>(std::min<int64_t>(num_threads, 1 + scores / kMinScoresPerThread));
    parallel_for(num_threads, groups * p_.num_kv_heads,
                 [&](int64_t i) { select(i / p_.num_kv_heads, static_cast<int>(i % p_.num_kv_heads)); });
  }

 private:
  // Finds the rows that choose, and groups those that choose together, depth-first. Other rows read
  // everything.
  void find_groups() {
    for (int64_t b = 0; b < p_.num_branches; ++b) {
      for (int32_t i = p_.branches[b].query_begin; i < p_.branches[b].query_end; ++i) {
        const int32_t token = p_.query_order[i], seen = p_.query_position[i] / kPageSize + 1;
        if (p_.budget[token] >= seen) {
          for (int head = 0; head < p_.num_kv_heads; ++head) set_columns(head, token, 0, seen);
          continue;
        }
        const int32_t tail = p_.tail_begin ? std::min(p_.tail_begin[token], seen) : seen;
        rows_.push_back({static_cast<int32_t>(b), token, seen, tail, p_.budget[token]});
      }
    }
    const auto group_of = [&](const Row& row) { return p_.groups[row.token]; };
    if (p_.groups) {
      std::stable_sort(rows_.begin(), rows_.end(),
                       [&](const Row& a, const Row& b) { return group_of(a) < group_of(b); });
    }
    for (size_t r = 0; r < rows_.size(); ++r) {
      if (r == 0 || !p_.groups || group_of(rows_[r - 1]) != group_of(rows_[r])) {
        group_begin_.push_back(static_cast<int32_t>(r));
      }
    }
    group_begin_.push_back(static_cast<int32_t>(rows_.size()));
  }

  // Always kept: columns before `keep_before(row)` and from `keep_from(row)` on.
  int32_t keep_before(const Row& row) const { return std::min(p_.sink, row.seen); }
  int32_t keep_from(const Row& row) const {
    return std::max(keep_before(row), std::min(row.tail, row.seen - std::min(p_.recent, row.seen)));
  }

  void set_columns(int head, int32_t token, int32_t begin, int32_t end) {
    int32_t* words = p_.mask + (int64_t{head} * p_.num_queries + token) * words_;
    for (int32_t c = begin; c < end; ++c) words[c / 32] |= static_cast<int32_t>(uint32_t{1} << (c % 32));
  }

  const float* checked_scores(const Row& row, int head) const {
    const float* scores = p_.scores + (int64_t{head} * p_.num_queries + row.token) * p_.num_columns;
    require(std::all_of(scores, scores + row.seen, [](float x) { return x >= 0 && x < INFINITY; }),
            "scores: row ", row.token, " holds a negative number, NaN or infinity, expected scores >= 0");
    return scores;
  }

  // Selects the pages that a row always keeps; returns the sum of their scores.
  double keep(const Row& row, int head, const float* scores) {
    const int32_t first = keep_before(row), last = keep_from(row);
    set_columns(head, row.token, 0, first);
    set_columns(head, row.token, last, row.seen);
    double sum = 0;
    for (int32_t c = 0; c < first; ++c) sum += double{scores[c]};
    for (int32_t c = last; c < row.seen; ++c) sum += double{scores[c]};
    return sum;
  }

  // select() for a group of one row: 3 times as fast, as no shared pages are looked for.
  void select_alone(const Row& row, int head) {
    const float* scores = checked_scores(row, head);
    const int32_t first = keep_before(row), last = keep_from(row);
    const double kept_score = keep(row, head, scores);
    const int32_t quota = std::max(row.budget - (first + row.seen - last), 0);
    take_best(
        last - first, quota, kept_score, p_.top_p, [&](int32_t i) { return double{scores[first + i]}; },
        std::less<int32_t>(), [&](int32_t i) { set_columns(head, row.token, first + i, first + i + 1); });
  }

  void select(int64_t group, int head) {
    const int32_t begin = group_begin_[static_cast<size_t>(group)];
    const int32_t end = group_begin_[static_cast<size_t>(group) + 1];
    if (end == begin + 1) return select_alone(rows_[static_cast<size_t>(begin)], head);
    thread_local std::vector<Candidate> candidates;
    thread_local std::vector<int32_t> path;   // column -> candidate of the current branch, -1: none yet
    thread_local std::vector<uint8_t> taken;  // by candidate
    candidates.clear();
    path.assign(static_cast<size_t>(p_.num_columns), -1);
    double kept_score = 0;
    int32_t quota = INT32_MAX, most_kept = 0;
    for (int32_t r = begin; r < end; ++r) {
      const Row& row = rows_[static_cast<size_t>(r)];
      forget_foreign_columns(r, begin, path);
      const float* scores = checked_scores(row, head);
      const int32_t first = keep_before(row), last = keep_from(row);
      kept_score += keep(row, head, scores);
      for (int32_t c = first; c < last; ++c) {
        int32_t& candidate = path[static_cast<size_t>(c)];
        if (candidate < 0) {
          candidate = static_cast<int32_t>(candidates.size());
          candidates.push_back({0.0, c});
        }
        candidates[static_cast<size_t>(candidate)].score += double{scores[c]};
      }
      quota = std::min(quota, row.budget);
      most_kept = std::max(most_kept, first + row.seen - last);
    }
    taken.assign(candidates.size(), 0);
    take_best(
        static_cast<int32_t>(candidates.size()), std::max(quota - most_kept, 0), kept_score,
        p_.top_p * (end - begin), [&](int32_t i) { return candidates[static_cast<size_t>(i)].score; },
        [&](int32_t i, int32_t j) {
          const int32_t a = candidates[static_cast<size_t>(i)].column;
          const int32_t b = candidates[static_cast<size_t>(j)].column;
          return a != b ? a < b : i < j;
        },
        [&](int32_t i) { taken[static_cast<size_t>(i)] = 1; });

    path.assign(static_cast<size_t>(p_.num_columns), -1);
    int32_t next = 0;  // candidates recur in the same order
    for (int32_t r = begin; r < end; ++r) {
      const Row& row = rows_[static_cast<size_t>(r)];
      forget_foreign_columns(r, begin, path);
      for (int32_t c = keep_before(row); c < keep_from(row); ++c) {
        int32_t& candidate = path[static_cast<size_t>(c)];
        if (candidate < 0) candidate = next++;
        if (taken[static_cast<size_t>(candidate)]) set_columns(head, row.token, c, c + 1);
      }
    }
  }

  // Forgets the columns in which row r does not share pages with the row before it.
  void forget_foreign_columns(int32_t r, int32_t begin, std::vector<int32_t>& path) const {
    if (r == begin) return;
    const int32_t a = rows_[static_cast<size_t>(r - 1)].branch, b = rows_[static_cast<size_t>(r)].branch;
    if (a == b) return;
    int32_t agreed = INT32_MAX;
    for (int32_t i = a + 1; i <= b; ++i) agreed = std::min(agreed, p_.branches[i].shared);
    std::fill(path.begin() + std::min<int64_t>(agreed, p_.num_columns), path.end(), -1);
  }

  // Calls take(i) for the best `quota` of n candidates that have a score, or for fewer once `sum` reaches
  // `enough`. `before(i, j)` orders equal scores.
  template <class Score, class Before, class Take>
  static void take_best(int32_t n, int32_t quota, double sum, double enough, const Score& score,
                        const Before& before, const Take& take) {
    if (quota == 0) return;
    // Bins by exponent and leading mantissa bits, to find the bin with the last candidate to take.
    int32_t bin_size[kBins] = {};
    for (int32_t i = 0; i < n; ++i) ++bin_size[bin_of(score(i))];
    int last_bin = kBins - 1;
    for (int32_t above = bin_size[kBins - 1]; above < quota && last_bin > 0;) above += bin_size[--last_bin];

    thread_local std::vector<int32_t> best_of_thread, last_of_thread;
    std::vector<int32_t>&best = best_of_thread, &last = last_of_thread;
    best.clear();
    last.clear();
    for (int32_t i = 0; i < n; ++i) {
      const int bin = bin_of(score(i));
      if (bin >= last_bin && score(i) > 0) (bin > last_bin ? best : last).push_back(i);
    }
    const auto better = [&](int32_t i, int32_t j) {
      return score(i) != score(j) ? score(i) > score(j) : before(i, j);
    };
    const auto rest =
        static_cast<std::ptrdiff_t>(std::min(static_cast<size_t>(quota) - best.size(), last.size()));
    std::nth_element(last.begin(), last.begin() + rest, last.end(), better);
    best.insert(best.end(), last.begin(), last.begin() + rest);
    if (std::isfinite(enough)) std::sort(best.begin(), best.end(), better);
    for (const int32_t i : best) {
      if (sum >= enough) break;
      take(i);
      sum += score(i);
    }
  }

  // Increases with the score, 32 bins per octave: scores below 2^-63 share the first bin, scores from almost
  // 2 on the last.
  static constexpr int kBins = 2048;
  static int bin_of(double score) {
    // -0.0 must count as 0, but its sign bit would read as the highest exponent; the sum clears it.
    const auto bits = static_cast<int64_t>(std::bit_cast<uint64_t>(score + 0.0) >> 47);
    return static_cast<int>(std::clamp<int64_t>(bits - (int64_t{1023 - 63} << 5), 0, kBins - 1));
  }

  const SelectTopPagesParams& p_;
  const int64_t words_;
  std::vector<Row> rows_;
  std::vector<int32_t> group_begin_;  // index into rows_; the last entry is the number of rows
};

}  // namespace

void select_top_pages(const SelectTopPagesParams& params, int num_threads) {
  int32_t next = 0;
  for (int64_t b = 0; b < params.num_branches; ++b) {
    const PlannedBranch& branch = params.branches[b];
    require(branch.query_begin == next && branch.query_end > next && branch.query_end <= params.num_queries &&
                branch.shared >= 0,
            "branches[", b, "]: got queries ", branch.query_begin, "..", branch.query_end,
            ", expected to go on from ", next, " within ", params.num_queries);
    next = branch.query_end;
  }
  require(next == params.num_queries, "branches: got ", next, " queries, expected ", params.num_queries);
  for (int64_t i = 0; i < params.num_queries; ++i) {
    require(params.query_order[i] >= 0 && params.query_order[i] < params.num_queries &&
                params.query_position[i] >= 0 && params.query_position[i] / kPageSize < params.num_columns,
            "query_order, query_position: got row ", params.query_order[i], " at position ",
            params.query_position[i], ", expected a row below ", params.num_queries, " and one of ",
            params.num_columns, " pages");
    require(params.budget[i] >= 1, "budget: got ", params.budget[i], ", expected at least 1 page");
    require(!params.tail_begin || params.tail_begin[i] >= 0, "tail_begin[", i, "]: got ",
            params.tail_begin ? params.tail_begin[i] : 0, ", expected the index of a page, >= 0");
    require(!params.groups || (params.groups[i] >= 0 && params.groups[i] < params.num_queries), "groups[", i,
            "]: got ", params.groups ? params.groups[i] : 0, ", expected a number from 0 to ",
            params.num_queries - 1);
  }
  Run(params, num_threads);
}

SelectionCounts count_selected(const PlanView& plan, const int32_t* mask, int num_kv_heads,
                               int64_t mask_words, int num_pool_pages) {
  check_plan(plan, num_pool_pages);
  check_mask(plan, mask_words);
  SelectionCounts counts{};
  const int32_t* last_page = std::max_element(plan.pages, plan.pages + plan.num_pages);
  std::vector<bool> loaded(plan.num_pages > 0 ? static_cast<size_t>(*last_page) + 1 : 0);
  for (int head = 0; head < num_kv_heads; ++head) {
    const int32_t* rows = mask + head * plan.num_queries * mask_words;
    loaded.assign(loaded.size(), false);
    for (int64_t i = 0; i < plan.num_segments; ++i) {
      const Segment& segment = plan.segments[i];
      const int tile = segment.first_page / kTilePages;
      if (tile / 2 >= mask_words) continue;
      uint32_t held = 0;  // columns of the tile for which the segment has pages
      for (int j = 0; j < segment.num_pages; ++j) {
        const bool hole = plan.pages[segment.page_offset + j] < 0;
        held |= uint32_t{!hole} << ((segment.first_page + j) % kTilePages);
      }
      uint32_t read = 0;
      for (int query = segment.query_begin; query < segment.query_end; ++query) {
        const int last = std::min(plan.query_position[query] / kPageSize - tile * kTilePages, kTilePages - 1);
        if (last < 0) continue;
        const auto word = static_cast<uint32_t>(rows[plan.query_order[query] * mask_words + tile / 2]);
        const uint32_t bits = word >> (16 * (tile % 2)) & held & ((2u << last) - 1);
        counts.pairs += std::popcount(bits);
        read |= bits;
      }
      for (int j = 0; j < segment.num_pages; ++j) {
        if ((read >> ((segment.first_page + j) % kTilePages) & 1) == 0) continue;
        const auto page = static_cast<size_t>(plan.pages[segment.page_offset + j]);
        counts.loads += !loaded[page];
        loaded[page] = true;
      }
    }
  }
  return counts;
}

}  // namespace tts
