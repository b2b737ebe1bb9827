// Branches over shared pages. Ids and token ids only: whoever owns the K and V does the copies and the writes
// that append() asks for.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "common/plan_records.h"
#include "tree/page_pool.h"

namespace tts {

// The copies, (source page, target page), come before the writes to the slots.
struct Append {
  std::vector<int32_t> slots;  // per new token: page * page_size + offset
  std::vector<std::array<int32_t, 2>> copies;
};

struct Match {
  int64_t holder;
  int32_t length;
};

struct TreeStats {
  int64_t branches;
  int64_t pins;
  int64_t logical_tokens;  // sum of the branches' lengths
  int64_t evicted_tokens;  // of them, those of evicted pages
  int64_t unique_tokens;   // distinct slots that a branch or a pin can see
  int64_t resident_pages;
  int64_t peak_pages;
  double fragmentation;  // share of the resident slots that nobody can see
};

// A holder is a branch, or a pin: a prefix kept resident that is not a branch. Its position p lives in slot
// p % page_size of page pages[p / page_size], or in none where that is kHole: the page was evicted. The last
// of its pages is never a hole.
//
// Pages are shared by fork() alone, and a page with several holders is never written. So a page stands in the
// same column of all its holders, which share every page before it but for holes of their own, and differ at
// most in how much of the page they see.
//
// A compacted page holds tokens of any positions of the columns that were compacted. It is full, no holder
// ends in it, and in all its holders a hole comes before it.
//
// Ids are unique in the process: a released id or one of another tree is not found. Every member that throws
// leaves the tree as it was.
class KVTree {
 public:
  KVTree(int64_t num_pages, int64_t page_size) : pool_(num_pages, page_size) {}

  int64_t create();
  std::vector<int64_t> fork(int64_t holder, int64_t n, std::optional<int64_t> at);
  Append append(std::span<const int64_t> branches, std::span<const std::span<const int32_t>> tokens);
  void truncate(int64_t branch, int64_t length);
  void release(int64_t branch);
  // Drops the pages in these columns from each of the branches and returns how many became free.
  int64_t evict(std::span<const int64_t> branches, std::span<const int64_t> columns);
  // Keeps the last `keep` of these columns, rising, whose pages no other holder has, for what the caller
  // moves there from all of them, and drops the others.
  void compact(int64_t branch, std::span<const int64_t> columns, int64_t keep);
  int64_t pin(int64_t holder, std::optional<int64_t> at);
  void unpin(int64_t pin);

  // The holder with the longest common prefix with `tokens` (the oldest of equals), which a hole ends;
  // nullopt if there is none.
  std::optional<Match> match(std::span<const int32_t> tokens) const;
  int32_t length(int64_t holder) const { return find(holder).length; }
  std::vector<int32_t> tokens(int64_t holder) const;  // -1 where the page was evicted or compacted
  std::span<const int32_t> pages(int64_t holder) const { return find(holder).pages; }
  std::vector<int32_t> page_holders(int64_t holder) const;  // by column, 0 where the page was evicted
  // Upper bound of the pages that append() of n tokens takes.
  int64_t pages_needed(int64_t branch, int64_t n) const;
  TreeStats stats() const;
  const PagePool& pool() const { return pool_; }

 private:
  struct Holder {
    std::vector<int32_t> pages;  // exactly pages_for(length), holes included
    int32_t length = 0;
    bool pinned = false;
  };

  bool lacks_its_tokens(int32_t page) const { return page == kHole || pool_.compacted(page); }
  int64_t pages_for(int64_t length) const { return (length + pool_.page_size() - 1) / pool_.page_size(); }
  const Holder& find(int64_t holder) const;
  const Holder& find_branch(int64_t branch) const;
  Holder& find_branch(int64_t branch);
  std::vector<int64_t> add_holders(int64_t source, int64_t n, std::optional<int64_t> at, bool pinned);
  // `length`, the argument `name`, must lie in 0 .. the holder's length and must not end in a hole or in a
  // compacted page.
  void check_cut(const char* name, int64_t length, int64_t id, const Holder& holder) const;
  std::vector<Holder*> checked_victims(std::span<const int64_t> branches, std::span<const int64_t> columns);
  void drop_pages(Holder& holder, int64_t keep);
  void write(Holder& branch, std::span<const int32_t> tokens, Append& done);

  PagePool pool_;
  std::unordered_map<int64_t, Holder> holders_;
};

}  // namespace tts
