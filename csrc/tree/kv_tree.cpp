#include "tree/kv_tree.h"

#include <algorithm>
#include <atomic>

#include "common/error.h"
#include "common/plan_records.h"

namespace tts {
namespace {

// Guards against a mistyped n that would take all memory for empty tables.
constexpr int64_t kMaxFork = 1 << 20;

int64_t next_id() {
  static std::atomic<int64_t> last{0};
  return ++last;
}

// A value that occurs twice; nullopt if there is none.
std::optional<int64_t> find_repeat(std::span<const int64_t> values) {
  std::vector<int64_t> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  return twice == sorted.end() ? std::nullopt : std::optional(*twice);
}

}  // namespace

KVTree::KVTree(int64_t num_pages, int64_t page_size, int64_t offload_pages)
    : pool_("num_pages", num_pages, page_size),
      offloaded_("offload_pages", offload_pages, page_size, num_pages) {
  require(num_pages >= 1, "num_pages: got ", num_pages, ", expected at least 1");
}

const KVTree::Holder& KVTree::find(int64_t holder) const {
  const auto found = holders_.find(holder);
  require(found != holders_.end(), "branch: got id ", holder,
          ", which this tree does not hold; it was released, or belongs to another tree");
  return found->second;
}

const KVTree::Holder& KVTree::find_branch(int64_t branch) const {
  const Holder& found = find(branch);
  require(!found.pinned, "branch: got id ", branch,
          ", which is a pin, expected a branch; fork the pin, or unpin it");
  return found;
}

KVTree::Holder& KVTree::find_branch(int64_t branch) {
  return const_cast<Holder&>(static_cast<const KVTree*>(this)->find_branch(branch));
}

void KVTree::check_cut(const char* name, int64_t length, int64_t id, const Holder& holder) const {
  require(0 <= length && length <= holder.length, name, ": got ", length, ", expected 0 <= ", name,
          " <= ", holder.length, ", the length of branch ", id);
  const std::vector<int32_t>& pages = holder.pages;
  const int64_t last = pages_for(length) - 1;
  if (last < 0 || !lacks_its_tokens(pages[last])) return;
  int64_t begin = last, end = last + 1;  // surrounding columns that lack their tokens; a whole page follows
  while (begin > 0 && lacks_its_tokens(pages[begin - 1])) --begin;
  while (lacks_its_tokens(pages[end])) ++end;
  begin *= pool_.page_size();
  end *= pool_.page_size();
  throw ArgumentError(concat(name, ": got ", length, ", but positions ", begin, " to ", end - 1,
                             " of branch ", id, " were evicted or compacted, expected at most ", begin,
                             ", or ", end + 1, " to ", holder.length));
}

int64_t KVTree::create() {
  const int64_t id = next_id();
  holders_.emplace(id, Holder{});
  return id;
}

std::vector<int64_t> KVTree::add_holders(int64_t source, int64_t n, std::optional<int64_t> at, bool pinned) {
  const Holder& from = find(source);
  const int64_t length = at.value_or(from.length);
  check_cut("at", length, source, from);
  require(0 <= n && n <= kMaxFork, "n: got ", n, ", expected 0 <= n <= ", kMaxFork);

  const auto shared = std::span(from.pages).first(static_cast<size_t>(pages_for(length)));
  std::vector<int64_t> ids;
  std::unordered_map<int64_t, Holder> added;
  ids.reserve(n);
  added.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    ids.push_back(next_id());
    added.emplace(ids.back(), Holder{{shared.begin(), shared.end()}, static_cast<int32_t>(length), pinned});
  }
  holders_.reserve(holders_.size() + n);
  // Nothing throws from here on.
  for (const int32_t page : shared) {
    if (page != kHole) pool_of(page).add_holders(page, static_cast<int32_t>(n));
  }
  holders_.merge(added);
  return ids;
}

std::vector<int64_t> KVTree::fork(int64_t holder, int64_t n, std::optional<int64_t> at) {
  return add_holders(holder, n, at, /*pinned=*/false);
}

int64_t KVTree::pin(int64_t holder, std::optional<int64_t> at) {
  return add_holders(holder, 1, at, /*pinned=*/true).front();
}

Append KVTree::append(std::span<const int64_t> branches, std::span<const std::span<const int32_t>> tokens) {
  require(branches.size() == tokens.size(), "tokens: got ", tokens.size(), " token lists for ",
          branches.size(), " branches, expected one a branch");
  const auto twice = find_repeat(branches);
  require(!twice, "branches: got branch ", twice.value_or(0),
          " twice, expected distinct branches; join its tokens in one list");

  std::vector<Holder*> writers;
  std::vector<int32_t> tails;  // the partly filled page that each writer appends to, with repeats
  writers.reserve(branches.size());
  size_t total = 0;
  int64_t needed = 0;
  for (size_t i = 0; i < branches.size(); ++i) {
    Holder& branch = find_branch(branches[i]);
    const int64_t count = static_cast<int64_t>(tokens[i].size());
    writers.push_back(&branch);
    total += tokens[i].size();
    needed += pages_for(branch.length + count) - pages_for(branch.length);
    if (count > 0 && branch.length % pool_.page_size() != 0) {
      require(resident(branch.pages.back()), "branches: got branch ", branches[i],
              ", whose last page is offloaded; reload the branch first");
      tails.push_back(branch.pages.back());
    }
  }
  // Of a tail's h holders, w write here. Each of them copies the tail, except that the last remaining holder
  // writes in place.
  std::sort(tails.begin(), tails.end());
  for (auto run = tails.begin(); run != tails.end();) {
    const auto end = std::upper_bound(run, tails.end(), *run);
    needed += std::min<int64_t>(end - run, pool_.holders(*run) - 1);
    run = end;
  }
  pool_.reserve(needed);

  Append done;
  done.slots.reserve(total);
  done.copies.reserve(tails.size());
  for (size_t i = 0; i < writers.size(); ++i) {
    reserve_amortised(writers[i]->pages,
                      static_cast<size_t>(pages_for(writers[i]->length + tokens[i].size())));
  }
  // Nothing throws from here on.
  for (size_t i = 0; i < writers.size(); ++i) write(*writers[i], tokens[i], done);
  return done;
}

void KVTree::write(Holder& branch, std::span<const int32_t> tokens, Append& done) {
  const int32_t page_size = pool_.page_size();
  const int32_t filled = branch.length % page_size;
  if (!tokens.empty() && filled != 0 && pool_.holders(branch.pages.back()) > 1) {
    const int32_t source = branch.pages.back();
    const int32_t target = pool_.take();
    std::copy_n(pool_.tokens(source), filled, pool_.tokens(target));
    pool_.drop_holder(source);
    branch.pages.back() = target;
    done.copies.push_back({source, target});
  }
  for (const int32_t token : tokens) {
    const int32_t offset = branch.length % page_size;
    if (offset == 0) branch.pages.push_back(pool_.take());
    const int32_t page = branch.pages.back();
    pool_.tokens(page)[offset] = token;
    done.slots.push_back(page * page_size + offset);
    ++branch.length;
  }
}

void KVTree::drop_pages(Holder& holder, int64_t keep) {
  while (static_cast<int64_t>(holder.pages.size()) > keep) {
    const int32_t page = holder.pages.back();
    if (page != kHole) pool_of(page).drop_holder(page);
    holder.pages.pop_back();
  }
}

void KVTree::truncate(int64_t branch, int64_t length) {
  Holder& target = find_branch(branch);
  check_cut("length", length, branch, target);
  drop_pages(target, pages_for(length));
  target.length = static_cast<int32_t>(length);
}

void KVTree::release(int64_t branch) {
  drop_pages(find_branch(branch), 0);
  holders_.erase(branch);
}

void KVTree::unpin(int64_t pin) {
  const auto found = holders_.find(pin);
  require(found != holders_.end() && found->second.pinned, "pin: got id ", pin,
          ", which is not a pin of this tree; it was unpinned, or is a branch, or belongs to another tree");
  drop_pages(found->second, 0);
  holders_.erase(found);
}

std::vector<KVTree::Holder*> KVTree::checked_victims(std::span<const int64_t> branches,
                                                     std::span<const int64_t> columns) {
  const auto branch_twice = find_repeat(branches), column_twice = find_repeat(columns);
  require(!branch_twice, "branches: got branch ", branch_twice.value_or(0),
          " twice, expected distinct branches");
  require(!column_twice, "columns: got column ", column_twice.value_or(0),
          " twice, expected distinct columns");
  std::unordered_map<int32_t, int64_t> pin_of;  // pin of each page in these columns
  for (const auto& [id, holder] : holders_) {
    for (const int64_t column : columns) {
      if (!holder.pinned || column < 0 || column >= std::ssize(holder.pages)) continue;
      pin_of.emplace(holder.pages[column], id);
    }
  }
  std::vector<Holder*> victims;
  victims.reserve(branches.size());
  for (const int64_t branch : branches) {
    Holder& victim = find_branch(branch);
    const int64_t last = std::ssize(victim.pages) - 1;
    for (const int64_t column : columns) {
      require(0 <= column && column < last, "columns: got ", column, ", expected 0 <= column < ",
              std::max<int64_t>(last, 0), "; branch ", branch, " has ", last + 1,
              " pages and always keeps the last");
      const int32_t page = victim.pages[column];
      require(page != kHole, "columns: got ", column, ", which was evicted from branch ", branch, " already");
      const auto pin = pin_of.find(page);
      require(pin == pin_of.end(), "columns: got ", column, ", a page of branch ", branch,
              " that is pinned; unpin ", pin == pin_of.end() ? 0 : pin->second, " first");
    }
    victims.push_back(&victim);
  }
  return victims;
}

int64_t KVTree::evict(std::span<const int64_t> branches, std::span<const int64_t> columns) {
  const std::vector<Holder*> victims = checked_victims(branches, columns);
  const int32_t resident = pool_.resident_pages();
  // Nothing throws from here on.
  for (Holder* victim : victims) {
    for (const int64_t column : columns) {
      pool_of(victim->pages[column]).drop_holder(victim->pages[column]);
      victim->pages[column] = kHole;
    }
  }
  return resident - pool_.resident_pages();
}

void KVTree::compact(int64_t branch, std::span<const int64_t> columns, int64_t keep) {
  Holder& target = find_branch(branch);
  const int64_t last = std::ssize(target.pages) - 1, count = std::ssize(columns);
  int64_t before = -1;
  for (const int64_t column : columns) {
    require(before < column && column < last, "columns: got ", column, " after ", before, " of branch ",
            branch, ", expected rising columns below ", std::max<int64_t>(last, 0),
            ", that of its last page");
    before = column;
    const int32_t page = target.pages[column];
    require(page != kHole, "columns: got ", column, ", which was evicted from branch ", branch, " already");
    require(resident(page), "columns: got ", column, ", a page of branch ", branch,
            " that is offloaded; reload the branch first");
    require(pool_.holders(page) == 1, "columns: got ", column, ", a page of branch ", branch, " that ",
            pool_.holders(page) - 1, " others hold, expected pages of its own");
  }
  require(1 <= keep && keep < count, "keep: got ", keep, ", expected 1 <= keep < ", count, ", the columns");
  // Nothing throws from here on.
  for (int64_t i = 0; i < count - keep; ++i) {
    pool_.drop_holder(target.pages[columns[i]]);
    target.pages[columns[i]] = kHole;
  }
  for (int64_t i = count - keep; i < count; ++i) pool_.mark_compacted(target.pages[columns[i]]);
}

std::vector<int32_t> KVTree::page_holders(int64_t holder) const {
  std::vector<int32_t> counts;
  for (const int32_t page : find(holder).pages)
    counts.push_back(page == kHole ? 0 : pool_of(page).holders(page));
  return counts;
}

std::vector<std::array<int32_t, 2>> KVTree::offload(std::span<const int64_t> pages) {
  const auto twice = find_repeat(pages);
  require(!twice, "pages: got page ", twice.value_or(0), " twice, expected distinct pages");
  for (const int64_t page : pages) {
    require(0 <= page && page < pool_.num_pages() && pool_.holds(static_cast<int32_t>(page)), "pages: got ",
            page, ", expected resident pages that a branch or a pin holds");
  }
  if (std::ssize(pages) > offloaded_.free_pages()) {
    throw OutOfPagesError(concat("pages: got ", pages.size(), " to offload, but ", offloaded_.free_pages(),
                                 " of ", offloaded_.num_pages(), " places are free; raise offload_pages"));
  }
  return move({pages.begin(), pages.end()}, offloaded_);
}

std::vector<std::array<int32_t, 2>> KVTree::reload(std::span<const int64_t> branches) {
  std::vector<bool> found(num_indices());
  std::vector<int32_t> pages;
  for (const int64_t branch : branches) {
    for (const int32_t page : find(branch).pages) {
      if (page == kHole || resident(page) || found[index(page)]) continue;
      found[index(page)] = true;
      pages.push_back(page);
    }
  }
  return move(pages, pool_);
}

std::vector<std::array<int32_t, 2>> KVTree::move(const std::vector<int32_t>& pages, PagePool& target) {
  if (pages.empty()) return {};
  const bool from_pool = resident(pages.front());
  const int32_t first = from_pool ? 0 : pool_.num_pages();
  std::vector<int32_t> moved_to(static_cast<size_t>((from_pool ? pool_ : offloaded_).used_pages()), kHole);
  std::vector<std::array<int32_t, 2>> moves;
  moves.reserve(pages.size());
  target.reserve(static_cast<int64_t>(pages.size()));
  // Nothing throws from here on.
  for (const int32_t page : pages) {
    moves.push_back({page, moved_to[page - first] = target.take_over(pool_of(page), page)});
  }
  for (auto& [id, holder] : holders_) {
    for (int32_t& page : holder.pages) {
      if (page == kHole || resident(page) != from_pool) continue;
      if (const int32_t moved = moved_to[page - first]; moved != kHole) page = moved;
    }
  }
  return moves;
}

std::optional<Match> KVTree::match(std::span<const int32_t> tokens) const {
  const int32_t page_size = pool_.page_size();
  const int64_t num_tokens = static_cast<int64_t>(tokens.size());
  // Leading slots of a page that agree with `tokens` at its position on the path; each page is compared once.
  std::vector<int32_t> agreeing(num_indices(), -1);
  Match best{0, 0};
  for (const auto& [id, holder] : holders_) {
    int64_t length = 0;
    for (const int32_t page : holder.pages) {
      if (page == kHole) break;
      int32_t& agrees = agreeing[index(page)];
      if (agrees < 0) {
        const auto expected = tokens.subspan(length, std::min<int64_t>(page_size, num_tokens - length));
        const auto differs =
            std::mismatch(expected.begin(), expected.end(), pool_of(page).tokens(page)).first;
        agrees = static_cast<int32_t>(differs - expected.begin());
      }
      length += agrees;
      if (agrees < page_size) break;
    }
    length = std::min<int64_t>(length, holder.length);  // later slots of the page are not this holder's
    if (length > best.length || (length == best.length && length > 0 && id < best.holder)) {
      best = {id, static_cast<int32_t>(length)};
    }
  }
  if (best.length == 0) return std::nullopt;
  return best;
}

std::vector<int32_t> KVTree::tokens(int64_t holder) const {
  const Holder& from = find(holder);
  std::vector<int32_t> tokens;
  tokens.reserve(from.length);
  for (const int32_t page : from.pages) {
    const size_t count = std::min<size_t>(pool_.page_size(), from.length - tokens.size());
    if (lacks_its_tokens(page)) {
      tokens.insert(tokens.end(), count, -1);
    } else {
      const int32_t* slots = pool_of(page).tokens(page);
      tokens.insert(tokens.end(), slots, slots + count);
    }
  }
  return tokens;
}

int64_t KVTree::pages_needed(int64_t branch, int64_t n) const {
  const Holder& from = find_branch(branch);
  require(0 <= n && n <= INT32_MAX, "n: got ", n, ", expected 0 <= n <= ", INT32_MAX);
  const bool copies_tail = n > 0 && from.length % pool_.page_size() != 0 &&
                           pool_of(from.pages.back()).holders(from.pages.back()) > 1;
  return pages_for(from.length + n) - pages_for(from.length) + copies_tail;
}

TreeStats KVTree::stats() const {
  TreeStats stats{};
  const int32_t page_size = pool_.page_size();
  std::vector<int32_t> visible(num_indices(), 0);  // leading slots of a page seen by its longest holder
  for (const auto& [id, holder] : holders_) {
    ++(holder.pinned ? stats.pins : stats.branches);
    if (!holder.pinned) stats.logical_tokens += holder.length;
    int32_t rest = holder.length;
    for (const int32_t page : holder.pages) {
      if (page != kHole) {
        visible[index(page)] = std::max(visible[index(page)], std::min(rest, page_size));
      } else if (!holder.pinned) {
        stats.evicted_tokens += page_size;
      }
      rest -= page_size;
    }
  }
  for (const int32_t slots : visible) stats.unique_tokens += slots;
  stats.resident_pages = pool_.resident_pages();
  stats.offloaded_pages = offloaded_.resident_pages();
  stats.peak_pages = pool_.peak_pages();
  const double slots = static_cast<double>(stats.resident_pages + stats.offloaded_pages) * page_size;
  stats.fragmentation = slots == 0 ? 0 : 1 - static_cast<double>(stats.unique_tokens) / slots;
  return stats;
}

}  // namespace tts
