#include "tree/page_pool.h"

#include <algorithm>
#include <limits>

#include "common/error.h"

namespace tts {

PagePool::PagePool(const char* name, int64_t num_pages, int64_t page_size, int64_t first) {
  constexpr int64_t kMaxSlots = std::numeric_limits<int32_t>::max();
  require(num_pages >= 0, name, ": got ", num_pages, ", expected at least 0");
  require(page_size >= 1, "page_size: got ", page_size, ", expected at least 1");
  require(num_pages <= kMaxSlots / page_size - first, name, ": got ", num_pages, " pages of ", page_size,
          " tokens, expected at most ", kMaxSlots, " token slots in all; make the pool smaller");
  first_ = static_cast<int32_t>(first);
  num_pages_ = static_cast<int32_t>(num_pages);
  page_size_ = static_cast<int32_t>(page_size);
}

void PagePool::reserve(int64_t pages) {
  if (pages > free_pages()) {
    throw OutOfPagesError(
        concat("out of pages: ", pages, " needed, ", free_pages(), " of ", num_pages_,
               " free; release or truncate branches, unpin prefixes, or make the pool larger"));
  }
  const int64_t fresh = pages - static_cast<int64_t>(free_.size());
  if (fresh <= 0) return;
  const size_t used = holders_.size() + static_cast<size_t>(fresh);
  reserve_amortised(holders_, used);
  reserve_amortised(compacted_, used);
  reserve_amortised(tokens_, used * page_size_);
  reserve_amortised(free_, used);  // drop_holder() must not allocate
}

int32_t PagePool::take() {
  int32_t page;
  if (free_.empty()) {
    page = first_ + used_pages();
    holders_.push_back(1);
    compacted_.push_back(false);
    tokens_.resize(tokens_.size() + page_size_);
  } else {
    page = free_.back();
    free_.pop_back();
    holders_[page - first_] = 1;
    compacted_[page - first_] = false;
  }
  peak_pages_ = std::max(peak_pages_, resident_pages());
  return page;
}

int32_t PagePool::take_over(PagePool& other, int32_t page) {
  const int32_t taken = take();
  std::copy_n(other.tokens(page), page_size_, tokens(taken));
  compacted_[taken - first_] = other.compacted(page);
  holders_[taken - first_] = other.holders(page);
  other.holders_[page - other.first_] = 0;
  other.free_.push_back(page);
  return taken;
}

void PagePool::drop_holder(int32_t page) {
  if (--holders_[page - first_] == 0) free_.push_back(page);
}

}  // namespace tts
