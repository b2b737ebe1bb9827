// The pages of a pool of fixed size: a reference count, the token ids of each, and whether a compaction
// filled it. Knows nothing of branches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tts {

class PagePool {
 public:
  // Throws ArgumentError unless both are positive and every slot number fits an int32.
  PagePool(int64_t num_pages, int64_t page_size);

  int32_t num_pages() const { return num_pages_; }
  int32_t page_size() const { return page_size_; }
  int32_t resident_pages() const { return used_pages() - static_cast<int32_t>(free_.size()); }
  int32_t free_pages() const { return num_pages_ - resident_pages(); }
  int32_t peak_pages() const { return peak_pages_; }
  // Pages handed out at least once: every page id that exists is below it.
  int32_t used_pages() const { return static_cast<int32_t>(holders_.size()); }

  // Makes the next `pages` calls of take() succeed without allocating memory, or throws OutOfPagesError.
  void reserve(int64_t pages);
  // A page with one holder. Its token slots hold whatever was there before. Only after reserve().
  int32_t take();

  int32_t holders(int32_t page) const { return holders_[page]; }
  void add_holders(int32_t page, int32_t count) { holders_[page] += count; }
  // The page is free as soon as its last holder is gone.
  void drop_holder(int32_t page);
  // Whether it holds tokens of other positions than its own, until it is taken again.
  bool compacted(int32_t page) const { return compacted_[page]; }
  void mark_compacted(int32_t page) { compacted_[page] = true; }

  // The page_size token slots of a page; valid until the next take().
  int32_t* tokens(int32_t page) { return tokens_.data() + static_cast<size_t>(page) * page_size_; }
  const int32_t* tokens(int32_t page) const {
    return tokens_.data() + static_cast<size_t>(page) * page_size_;
  }

 private:
  int32_t num_pages_;
  int32_t page_size_;
  int32_t peak_pages_ = 0;
  // These grow as pages are first used, so a large pool costs nothing until it fills.
  std::vector<int32_t> holders_;  // [used_pages]
  std::vector<bool> compacted_;   // [used_pages]
  std::vector<int32_t> tokens_;   // [used_pages * page_size]
  std::vector<int32_t> free_;     // pages used before and free now, the last freed on top
};

// vector::reserve that keeps repeated small growth amortised.
template <class T>
void reserve_amortised(std::vector<T>& values, size_t size) {
  if (size > values.capacity()) values.reserve(std::max(size, 2 * values.capacity()));
}

}  // namespace tts
