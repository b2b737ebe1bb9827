// A fixed-size pool of pages numbered from `first`. Each page has a reference count, its token ids, and a
// flag that says whether a compaction filled it. The pool does not know branches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tts {

class PagePool {
 public:
  // Throws ArgumentError, in which num_pages is called `name`, unless every slot number fits an int32,
  // num_pages >= 0 and page_size >= 1.
  PagePool(const char* name, int64_t num_pages, int64_t page_size, int64_t first = 0);

  int32_t num_pages() const { return num_pages_; }
  int32_t page_size() const { return page_size_; }
  int32_t resident_pages() const { return used_pages() - static_cast<int32_t>(free_.size()); }
  int32_t free_pages() const { return num_pages_ - resident_pages(); }
  int32_t peak_pages() const { return peak_pages_; }
  // Pages handed out at least once. Every existing page has a number below first + used_pages.
  int32_t used_pages() const { return static_cast<int32_t>(holders_.size()); }

  // Makes the next `pages` calls of take() succeed without allocating memory, or throws OutOfPagesError.
  void reserve(int64_t pages);
  // Hands out a page with one holder; its token slots are not cleared. Call reserve() first.
  int32_t take();
  // Takes over a page of another pool, with its holders, and frees it there. Call reserve() first.
  int32_t take_over(PagePool& other, int32_t page);

  bool holds(int32_t page) const { return first_ <= page && page < first_ + used_pages() && holders(page); }
  int32_t holders(int32_t page) const { return holders_[page - first_]; }
  void add_holders(int32_t page, int32_t count) { holders_[page - first_] += count; }
  // Frees the page with its last holder.
  void drop_holder(int32_t page);
  // Whether the page holds tokens of positions other than its own. Reset when the page is taken again.
  bool compacted(int32_t page) const { return compacted_[page - first_]; }
  void mark_compacted(int32_t page) { compacted_[page - first_] = true; }

  // The page_size token slots of a page; valid until the next take().
  int32_t* tokens(int32_t page) { return tokens_.data() + static_cast<size_t>(page - first_) * page_size_; }
  const int32_t* tokens(int32_t page) const {
    return tokens_.data() + static_cast<size_t>(page - first_) * page_size_;
  }

 private:
  int32_t first_;
  int32_t num_pages_;
  int32_t page_size_;
  int32_t peak_pages_ = 0;
  // These grow as pages are first used, so a large pool costs nothing until it fills.
  std::vector<int32_t> holders_;  // [used_pages]
  std::vector<bool> compacted_;   // [used_pages]
  std::vector<int32_t> tokens_;   // [used_pages * page_size]
  std::vector<int32_t> free_;     // pages used before and free now, last freed on top
};

// vector::reserve that keeps repeated small growth amortised.
template <class T>
void reserve_amortised(std::vector<T>& values, size_t size) {
  if (size > values.capacity()) values.reserve(std::max(size, 2 * values.capacity()));
}

}  // namespace tts
