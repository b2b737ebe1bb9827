// Random walks over the tree and the planner, meant to run under the sanitizers; the full model is in
// tests/kernels/test_kv_tree.py and tests/kernels/test_plan.py.
#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <vector>

#include "common/error.h"
#include "tests/check.h"
#include "tree/kv_tree.h"
#include "tree/plan.h"

namespace tts {
namespace {

using Tokens = std::vector<int32_t>;
using Random = std::mt19937;

int64_t draw(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// A tree, all tokens of every branch (-1 if evicted or compacted), and the token that the caller wrote to
// each slot.
struct Walk {
  explicit Walk(uint32_t seed) : random(seed), kv((kNumPages + kPlaces) * kPageSize, -1) {}

  static constexpr int32_t kNumPages = 24;
  static constexpr int32_t kPageSize = 4;
  static constexpr int32_t kPlaces = 5;  // for offloaded pages

  Random random;
  KVTree tree{kNumPages, kPageSize, kPlaces};
  std::map<int64_t, Tokens> branches;
  Tokens kv;

  int64_t pick() { return std::next(branches.begin(), draw(random, 0, branches.size() - 1))->first; }

  void step() {
    if (branches.empty() || draw(random, 0, 9) == 0) branches[tree.create()] = {};
    const int64_t branch = pick();
    Tokens& tokens = branches[branch];
    const int64_t length = draw(random, 0, tokens.size());
    const bool in_hole = length > 0 && tokens[length - 1] < 0;
    switch (draw(random, 0, 7)) {
      case 0:
        if (in_hole) {
          CHECK_THROWS(tree.fork(branch, 1, length), ArgumentError);
          break;
        }
        for (const int64_t child : tree.fork(branch, draw(random, 0, 3), length)) {
          branches[child] = {tokens.begin(), tokens.begin() + length};
        }
        break;
      case 1:
        if (in_hole) {
          CHECK_THROWS(tree.truncate(branch, length), ArgumentError);
          break;
        }
        tree.truncate(branch, length);
        tokens.resize(length);
        break;
      case 2:
        tree.release(branch);
        branches.erase(branch);
        CHECK_THROWS(tree.length(branch), ArgumentError);
        break;
      case 3:
        evict(branch);
        break;
      case 4:
        compact(branch);
        break;
      case 5:
        offload(branch);
        break;
      default:
        append();
    }
  }

  void evict(int64_t branch) {
    const int64_t pages = std::ssize(tree.pages(branch));
    const int64_t column = draw(random, 0, pages);
    const int32_t free_pages = tree.pool().free_pages();
    Tokens& tokens = branches[branch];
    if (column >= pages - 1 || tree.pages(branch)[column] < 0) {
      CHECK_THROWS(tree.evict({&branch, 1}, {&column, 1}), ArgumentError);
      CHECK(tree.pool().free_pages() == free_pages);
      return;
    }
    const int32_t page = tree.pages(branch)[column];
    CHECK(tree.evict({&branch, 1}, {&column, 1}) == tree.pool().free_pages() - free_pages);
    std::fill_n(tokens.begin() + column * kPageSize, kPageSize, -1);
    bool needed = false;
    for (const auto& [id, other] : branches) {
      const auto held = tree.pages(id);
      needed |= std::find(held.begin(), held.end(), page) != held.end();
    }
    CHECK(tree.pool().free_pages() - free_pages == !needed);
  }

  // Offloads the first pages of a branch, truncates or ends some of its relatives, then reloads all pages.
  void offload(int64_t branch) {
    std::vector<int64_t> pages;
    for (const int32_t page : tree.pages(branch)) {
      if (page >= 0 && std::ssize(pages) <= kPlaces) pages.push_back(page);
    }
    const int32_t free_pages = tree.pool().free_pages();
    if (std::ssize(pages) > kPlaces) {
      CHECK_THROWS(tree.offload(pages), OutOfPagesError);
      pages.pop_back();
    }
    move(tree.offload(pages));
    CHECK(tree.pool().free_pages() == free_pages + std::ssize(pages));
    CHECK(tree.stats().offloaded_pages == std::ssize(pages));
    if (!pages.empty()) CHECK_THROWS(tree.offload({pages.data(), 1}), ArgumentError);
    check();
    const int64_t other = pick();
    Tokens& tokens = branches[other];
    if (const size_t length = draw(random, 0, tokens.size()); length == 0 || tokens[length - 1] >= 0) {
      tree.truncate(other, length);
      tokens.resize(length);
    }
    std::vector<int64_t> ids;
    for (const auto& [id, held] : branches) ids.push_back(id);
    move(tree.reload(ids));
    CHECK(tree.offloaded().resident_pages() == 0);
  }

  void move(const std::vector<std::array<int32_t, 2>>& moves) {
    const Tokens before = kv;
    for (const auto& [source, target] : moves) std::fill_n(kv.begin() + source * kPageSize, kPageSize, -2);
    for (const auto& [source, target] : moves) {
      std::copy_n(before.begin() + source * kPageSize, kPageSize, kv.begin() + target * kPageSize);
    }
  }

  // Compacts two columns into the second.
  void compact(int64_t branch) {
    const int64_t pages = std::ssize(tree.pages(branch));
    const std::array<int64_t, 2> columns{draw(random, 0, pages), draw(random, 0, pages)};
    const std::vector<int32_t> holders = tree.page_holders(branch);
    const int32_t free_pages = tree.pool().free_pages();
    const bool allowed = columns[0] < columns[1] && columns[1] < pages - 1 && holders[columns[0]] == 1 &&
                         holders[columns[1]] == 1;
    if (!allowed) {
      CHECK_THROWS(tree.compact(branch, columns, 1), ArgumentError);
      CHECK(tree.pool().free_pages() == free_pages);
      return;
    }
    tree.compact(branch, columns, 1);
    CHECK(tree.pool().free_pages() == free_pages + 1);
    for (const int64_t column : columns) {
      std::fill_n(branches[branch].begin() + column * kPageSize, kPageSize, -1);
    }
  }

  void append() {
    std::vector<int64_t> ids;
    std::vector<Tokens> added;
    for (const auto& [id, tokens] : branches) {
      if (draw(random, 0, 1) == 0) continue;
      ids.push_back(id);
      added.emplace_back();
      for (int64_t n = draw(random, 0, 6); n > 0; --n) added.back().push_back(draw(random, 0, 2));
    }
    const std::vector<std::span<const int32_t>> spans(added.begin(), added.end());
    const int32_t free_pages = tree.pool().free_pages();
    Append done;
    try {
      done = tree.append(ids, spans);
    } catch (const OutOfPagesError&) {
      CHECK(tree.pool().free_pages() == free_pages);
      return;
    }
    for (const auto& [source, target] : done.copies) {
      std::copy_n(kv.begin() + source * kPageSize, kPageSize, kv.begin() + target * kPageSize);
    }
    auto slot = done.slots.begin();
    for (size_t i = 0; i < ids.size(); ++i) {
      for (const int32_t token : added[i]) {
        kv[*slot++] = token;
        branches[ids[i]].push_back(token);
      }
    }
    CHECK(slot == done.slots.end());
  }

  void check() {
    for (const auto& [id, tokens] : branches) {
      CHECK(tree.tokens(id) == tokens);
      const auto pages = tree.pages(id);
      CHECK(pages.size() == (tokens.size() + kPageSize - 1) / kPageSize);
      for (size_t p = 0; p < tokens.size(); ++p) {
        const int32_t page = pages[p / kPageSize];
        CHECK(page >= 0 || tokens[p] < 0);
        CHECK(tokens[p] < 0 || kv[page * kPageSize + p % kPageSize] == tokens[p]);
      }
      const auto match = tree.match(tokens);
      const auto held = std::find(tokens.begin(), tokens.end(), -1) - tokens.begin();
      CHECK(held == 0 ? !match : match->length == held);
    }
    CHECK(tree.stats().branches == static_cast<int64_t>(branches.size()));
  }

  // Each query's segments must list the pages of its path in order, at least up to the page of its position.
  void check_plan() {
    Tokens tables, lengths, query_lens, rows;
    for (const auto& [id, tokens] : branches) {
      const auto pages = tree.pages(id);
      tables.insert(tables.end(), pages.begin(), pages.end());
      tables.resize(tables.size() + kNumPages - pages.size(), -1);
      lengths.push_back(tokens.size());
      // No query in a hole.
      const auto hole = std::find(tokens.rbegin(), tokens.rend(), -1);
      query_lens.push_back(draw(random, 0, hole - tokens.rbegin()));
      rows.insert(rows.end(), query_lens.back(), lengths.size() - 1);
    }
    const TreePlan plan = tts::plan({{.block_tables = tables.data(),
                                      .lengths = lengths.data(),
                                      .query_lens = query_lens.data(),
                                      .num_branches = static_cast<int64_t>(branches.size()),
                                      .table_width = kNumPages,
                                      .page_size = kPageSize},
                                     draw(random, 1, 40)});
    CHECK(plan.query_order.size() == rows.size());
    std::vector<int32_t> listed(rows.size(), 0);
    for (const Segment& segment : plan.segments) {
      for (int32_t query = segment.query_begin; query < segment.query_end; ++query) {
        const int32_t* path = &tables[rows[plan.query_order[query]] * kNumPages];
        CHECK(segment.first_page == listed[query]);
        for (int32_t i = 0; i < segment.num_pages; ++i) {
          CHECK(plan.pages[segment.page_offset + i] == path[segment.first_page + i]);
        }
        listed[query] += segment.num_pages;
      }
    }
    for (size_t query = 0; query < rows.size(); ++query) {
      CHECK(listed[query] > plan.query_position[query] / kPageSize);
    }
  }

  void finish() {
    while (!branches.empty()) {
      tree.release(branches.begin()->first);
      branches.erase(branches.begin());
    }
    CHECK(tree.pool().free_pages() == kNumPages);
  }
};

void test_random_walks() {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    Walk walk(seed);
    for (int step = 0; step < 150; ++step) {
      walk.step();
      walk.check();
      walk.check_plan();
    }
    walk.finish();
  }
}

void test_pins_hold_pages_and_are_not_branches() {
  KVTree tree(8, 4);
  const int64_t branch = tree.create();
  const Tokens tokens{1, 2, 3, 4, 5, 6};
  const std::span<const int32_t> added(tokens);
  tree.append({&branch, 1}, {&added, 1});
  const int64_t pin = tree.pin(branch, 5);
  tree.release(branch);
  CHECK(tree.stats().pins == 1 && tree.stats().branches == 0 && tree.stats().logical_tokens == 0);
  CHECK(tree.stats().unique_tokens == 5);
  CHECK(tree.match(tokens)->holder == pin && tree.match(tokens)->length == 5);
  CHECK_THROWS(tree.release(pin), ArgumentError);
  CHECK_THROWS(tree.append({&pin, 1}, {&added, 1}), ArgumentError);
  CHECK_THROWS(tree.unpin(branch), ArgumentError);
  tree.unpin(pin);
  CHECK(tree.pool().free_pages() == 8);
}

void test_bad_arguments() {
  CHECK_THROWS(KVTree(0, 16), ArgumentError);
  CHECK_THROWS(KVTree(int64_t{1} << 60, int64_t{1} << 60), ArgumentError);
  KVTree tree(4, 4), other(4, 4);
  const int64_t branch = tree.create();
  CHECK_THROWS(other.length(branch), ArgumentError);
  CHECK_THROWS(tree.fork(branch, 1, 1), ArgumentError);
  CHECK_THROWS(tree.fork(branch, -1, std::nullopt), ArgumentError);
  CHECK_THROWS(tree.truncate(branch, -1), ArgumentError);

  const Tokens table{0, -1}, length{20}, one{1}, many{21};
  const auto plan_of = [&](const Tokens& query_lens, int64_t width, int64_t page_size) {
    return plan({table.data(), length.data(), query_lens.data(), 1, width, page_size, 32});
  };
  CHECK_THROWS(plan_of(one, 2, 16), ArgumentError);   // a hole at the end
  CHECK_THROWS(plan_of(one, 1, 16), ArgumentError);   // longer than the table
  CHECK_THROWS(plan_of(many, 1, 32), ArgumentError);  // more queries than tokens
  CHECK_THROWS(plan_of(one, 1, 0), ArgumentError);
  CHECK(plan_of(one, 1, 32).pages.size() == 1);
}

}  // namespace
}  // namespace tts

int main() {
  tts::test_random_walks();
  tts::test_pins_hold_pages_and_are_not_branches();
  tts::test_bad_arguments();
  return tts::test::failures() == 0 ? 0 : 1;
}
