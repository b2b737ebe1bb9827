// Branches over shared pages. Stores ids and token ids only: the owner of K and V does the copies and writes
// that append() returns.
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

// Do the copies, (source page, target page), before the writes to the slots.
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
  int64_t logical_tokens;  // sum of the branch lengths
  int64_t evicted_tokens;  // logical tokens in evicted pages
  int64_t unique_tokens;   // distinct slots that a branch or a pin can see
  int64_t resident_pages;
  int64_t offloaded_pages;
  int64_t peak_pages;    // resident at once
  double fragmentation;  // share of the slots of resident and offloaded pages that nobody can see
};

// A holder is a branch or a pin; a pin keeps a prefix resident without being a branch. Position p of a holder
// is slot p % page_size of page pages[p / page_size]; kHole there means that the page was evicted. A holder's
// last page is never a hole.
//
// Only fork() shares pages, and a page with several holders is never written. So a page is in the same column
// for all its holders. They share every page before it, apart from holes of their own, and differ at most in
// how much of the page they see.
//
// A compacted page holds tokens from any positions of the compacted columns. It is full, no holder ends in
// it, and a hole precedes it in all its holders.
//
// Offloaded pages have ids from num_pages on. Their K and V are where the caller keeps them outside the pool,
// and must be reloaded before they are read or written. Otherwise they behave like resident pages. A page is
// offloaded and reloaded for all its holders at once.
//
// Ids are unique within the process, so a released id, or one of another tree, is not found. A member that
// throws leaves the tree unchanged.
class KVTree {
 public:
  KVTree(int64_t num_pages, int64_t page_size, int64_t offload_pages = 0);

  int64_t create();
  std::vector<int64_t> fork(int64_t holder, int64_t n, std::optional<int64_t> at);
  Append append(std::span<const int64_t> branches, std::span<const std::span<const int32_t>> tokens);
  void truncate(int64_t branch, int64_t length);
  void release(int64_t branch);
  // Drops the pages in these columns from each branch; returns the number of pages freed.
  int64_t evict(std::span<const int64_t> branches, std::span<const int64_t> columns);
  // Keeps the last `keep` of these columns and drops the others; the caller moves the K and V to keep, from
  // all of them, into the kept ones. Columns ascend, and their pages have no other holder.
  void compact(int64_t branch, std::span<const int64_t> columns, int64_t keep);
  int64_t pin(int64_t holder, std::optional<int64_t> at);
  void unpin(int64_t pin);
  // Both return moves, (old id, new id), which the caller does at once. offload() takes resident pages;
  // reload() takes the offloaded pages of these branches.
  std::vector<std::array<int32_t, 2>> offload(std::span<const int64_t> pages);
  std::vector<std::array<int32_t, 2>> reload(std::span<const int64_t> branches);

  // The holder with the longest common prefix with `tokens`, the oldest of equals; nullopt if there is none.
  // A hole ends a holder's prefix.
  std::optional<Match> match(std::span<const int32_t> tokens) const;
  int32_t length(int64_t holder) const { return find(holder).length; }
  std::vector<int32_t> tokens(int64_t holder) const;  // -1 where the page was evicted or compacted
  std::span<const int32_t> pages(int64_t holder) const { return find(holder).pages; }
  std::vector<int32_t> page_holders(int64_t holder) const;  // by column; 0 where the page was evicted
  // Upper bound on the pages that append() of n tokens takes.
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
  // Numbers all existing pages from 0 to num_indices() - 1.
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
