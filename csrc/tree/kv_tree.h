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
  int64_t offloaded_pages;
  int64_t peak_pages;    // resident at once
  double fragmentation;  // share of the slots of resident and offloaded pages that nobody can see
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
// Pages are numbered on from num_pages where they are offloaded: their K and V lie where the caller keeps
// them beside the pool, and have to be reloaded before anything reads or writes them. Everything else is as
// with resident pages; a page is offloaded and reloaded for all its holders at once.
//
// Ids are unique in the process: a released id or one of another tree is not found. Every member that throws
// leaves the tree as it was.
class KVTree {
 public:
  KVTree(int64_t num_pages, int64_t page_size, int64_t offload_pages = 0);

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
  // Moves, (page, where it went), that the caller does at once. offload() takes resident pages, reload()
  // takes what is offloaded of these branches' pages.
  std::vector<std::array<int32_t, 2>> offload(std::span<const int64_t> pages);
  std::vector<std::array<int32_t, 2>> reload(std::span<const int64_t> branches);

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
  const PagePool& offloaded() const { return offloaded_; }

 private:
  struct Holder {
    std::vector<int32_t> pages;  // exactly pages_for(length), holes included
    int32_t length = 0;
    bool pinned = false;
  };

  bool resident(int32_t page) const { return page < pool_.num_pages(); }
  PagePool& pool_of(int32_t page) { return resident(page) ? pool_ : offloaded_; }
  const PagePool& pool_of(int32_t page) const { return resident(page) ? pool_ : offloaded_; }
  // Numbers all pages that exist, from 0 on, below num_indices().
  int32_t index(int32_t page) const {
    return resident(page) ? page : page - pool_.num_pages() + pool_.used_pages();
  }
  size_t num_indices() const { return static_cast<size_t>(pool_.used_pages()) + offloaded_.used_pages(); }
  bool lacks_its_tokens(int32_t page) const { return page == kHole || pool_of(page).compacted(page); }
  int64_t pages_for(int64_t length) const { return (length + pool_.page_size() - 1) / pool_.page_size(); }
  const Holder& find(int64_t holder) const;
  const Holder& find_branch(int64_t branch) const;
  Holder& find_branch(int64_t branch);
  std::vector<int64_t> add_holders(int64_t source, int64_t n, std::optional<int64_t> at, bool pinned);
  // `length`, the argument `name`, must lie in 0 .. the holder's length and must not end in a hole or in a
  // compacted page.
  void check_cut(const char* name, int64_t length, int64_t id, const Holder& holder) const;
  std::vector<Holder*> checked_victims(std::span<const int64_t> branches, std::span<const int64_t> columns);
  std::vector<std::array<int32_t, 2>> move(const std::vector<int32_t>& pages, PagePool& target);
  void drop_pages(Holder& holder, int64_t keep);
  void write(Holder& branch, std::span<const int32_t> tokens, Append& done);

  PagePool pool_, offloaded_;
  std::unordered_map<int64_t, Holder> holders_;
};

}  // namespace tts
