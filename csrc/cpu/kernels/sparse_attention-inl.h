// Attention over the pages that each query selected, or that remain after eviction. Included by
// tree_attention-inl.h after its `Chunk`.
//
// Works tile by tile. The pages that a query reads are adjacent in its rows of scores, in path order, so the
// dense code multiplies and sums them in the same order as if all were read. Neighbouring queries that read
// the same pages are processed together. A tile's pages are loaded once and then stay in the cache.
#pragma once

template <Storage kStorage>
struct SparseChunk : Chunk<kStorage> {
  using Base = Chunk<kStorage>;
  using Base::head_dim;
  using Base::kBatchPages;
  using Base::row_of;
  using Base::scratch;
  using Base::task;

  // The pages of one tile that a query reads, in path order.
  struct PageList {
    int count = 0;
    int column[kTilePages];
    int page[kTilePages];

    bool operator==(const PageList& other) const {
      if (count != other.count) return false;
      for (int j = 0; j < count; ++j) {
        if (column[j] != other.column[j] || page[j] != other.page[j]) return false;
      }
      return true;
    }
  };

  uint32_t chosen_bits(int query, int tile) const {
    if (task.mask == nullptr) return 0xffff;
    if (tile / 2 >= task.mask_words) return 0;
    const int32_t word = task.mask[task.query_order[query] * task.mask_words + tile / 2];
    return static_cast<uint32_t>(word) >> (16 * (tile % 2)) & 0xffff;
  }

  PageList list_pages(int query, int tile, const Segment* begin, const Segment* end) const {
    PageList list;
    uint32_t bits = chosen_bits(query, tile);
    if (bits == 0) return list;
    // Keeps the columns that the query sees: drops bits before its window and after its position.
    const int first = this->first_visible(query) / kPageSize - tile * kTilePages;
    const int last = task.position[query] / kPageSize - tile * kTilePages;
    if (first >= kTilePages || last < 0) return list;
    if (first > 0) bits &= 0xffffu << first;
    if (last < kTilePages - 1) bits &= (2u << last) - 1;
    for (const Segment* s = begin; s < end && bits != 0; ++s) {
      if (query < s->query_begin || query >= s->query_end) continue;
      const int32_t* pages = task.pages + s->page_offset;
      for (int i = 0; i < s->num_pages; ++i) {
        const int column = s->first_page + i;
        if ((bits >> column % kTilePages & 1) == 0 || pages[i] < 0) continue;
        list.column[list.count] = column;
        list.page[list.count++] = pages[i];
      }
    }
    return list;
  }

  // The query sees tokens [begin, end) of the listed pages, counted as if the pages were adjacent.
  int begin_of(const PageList& list, int query) const {
    return max_of(this->first_visible(query) - list.column[0] * kPageSize, 0);
  }
  int end_of(const PageList& list, int query) const {
    const int last = list.count - 1;
    return last * kPageSize + min_of(task.position[query] + 1 - list.column[last] * kPageSize, kPageSize);
  }

  // Calls body(index in the list, operands, count) for up to kBatchPages pages of the list at a time.
  template <class MakeWords, class Body>
  void for_each_batch(const PageList& list, const MakeWords& words, const Body& body) const {
    for (int j = 0, count; j < list.count; j += count) {
      count = even_part(list.count - j, kBatchPages);
      const uint32_t* batch[kBatchPages];
      for (int i = 0; i < count; ++i) {
        batch[i] = words(list.page[j + i], this->wide_page(i));
      }
      body(j, batch, count);
    }
  }

  // A thin run takes less time than loading its pages, so the next data is prefetched while it is multiplied,
  // a line at a time: here, the values of the same pages.
  void scores(const PageList& list, int begin, int end) const {
    const bool is_thin = ChunkBase<kStorage>::thin(begin, end);
    const auto words = [&](int page, uint32_t* wide) { return this->k_words(page, is_thin, wide); };
    for_each_batch(list, words, [&](int j, const uint32_t* const* k, int count) {
      const uint32_t* ahead[kBatchPages];
      for (int i = 0; i < count; ++i) ahead[i] = this->packed_v(list.page[j + i]);
      Base::with_product(is_thin, [&](auto product) {
        this->template set_scores<product.kValue>(row_of(begin), row_of(end), j, list.page + j, k, count,
                                                  Base::fetching(ahead, is_thin));
      });
    });
  }

  void softmax(const PageList& list, int tile, int query) const {
    const int begin = begin_of(list, query), end = end_of(list, query);
    for (int row = row_of(query); row < row_of(query + 1); ++row) {
      float page_sums[kTilePages] = {};
      this->softmax_row(row, begin, end, list.column, task.mass != nullptr ? page_sums : nullptr);
      if (task.mass == nullptr) continue;
      for (int j = 0; j < list.count; ++j) this->export_mass(row, tile, list.column[j], page_sums[j]);
    }
  }

  // Prefetches the keys of `next` meanwhile.
  void values(const PageList& list, const PageList& next, int begin, int end) const {
    const bool is_thin = ChunkBase<kStorage>::thin(begin, end);
    const auto words = [&](int page, uint32_t* wide) { return this->v_words(page, is_thin, wide); };
    const int all = list.count * kPageSize;
    bool whole = true;
    for (int query = begin; query < end; ++query) {
      whole = whole && begin_of(list, query) == 0 && end_of(list, query) == all;
    }
    for_each_batch(list, words, [&](int j, const uint32_t* const* v, int count) {
      const uint32_t* ahead[kBatchPages];
      for (int i = 0; i < count; ++i) {
        ahead[i] = j + i < next.count ? this->packed_k(next.page[j + i]) : this->packed_v(list.page[j + i]);
      }
      if (whole) return add_pages(begin, end, j, v, count, is_thin, Base::fetching(ahead, is_thin));
      for (int query = begin; query < end; ++query) {
        const int first = begin_of(list, query), last = end_of(list, query);
        for (int i = 0; i < count; ++i) add_page_part(query, j + i, v[i], first, last, is_thin);
      }
    });
  }

  void add_pages(int begin, int end, int j, const uint32_t* const* v, int count, bool is_thin,
                 Ahead ahead) const {
    Base::with_product(is_thin, [&](auto product) {
      this->template add_values<product.kValue>(row_of(begin), row_of(end), j * Base::kWordsPerPage, v, count,
                                                Base::kWordsPerPage, ahead);
    });
  }

  // Adds page j of the list for a query that sees tokens [first, last) of the list.
  void add_page_part(int query, int j, const uint32_t* v, int first, int last, bool is_thin) const {
    const int begin = max_of(first - j * kPageSize, 0), end = min_of(last - j * kPageSize, kPageSize);
    if (begin == 0 && end == kPageSize) return add_pages(query, query + 1, j, &v, 1, is_thin, {});
    this->add_partial_page(query, j, this->whole_operands(v, is_thin), begin, end);
  }

  // Neighbouring queries [begin, end) that read the same pages of one tile.
  struct ListRun {
    PageList list;
    int tile = 0, begin = 0, end = 0;
    const Segment *segment_begin = nullptr, *segment_end = nullptr;  // of the tile
  };

  // The next run after `run` that has pages; end == begin if there is none.
  ListRun next_run(const ListRun& run) const {
    ListRun next = run;
    do {
      if (next.end == task.query_end) {  // the next tile
        if (next.segment_end == task.segment_end) return {};
        next.segment_begin = next.segment_end;
        next.tile = next.segment_begin->first_page / kTilePages;
        while (next.segment_end < task.segment_end &&
               next.segment_end->first_page / kTilePages == next.tile) {
          ++next.segment_end;
        }
        next.end = task.query_begin;
      }
      next.begin = next.end++;
      next.list = list_pages(next.begin, next.tile, next.segment_begin, next.segment_end);
      while (next.end < task.query_end &&
             list_pages(next.end, next.tile, next.segment_begin, next.segment_end) == next.list) {
        ++next.end;
      }
    } while (next.list.count == 0);
    return next;
  }

  void run() const {
    this->clear_state();
    ListRun first;
    first.end = task.query_end;
    first.segment_end = task.segment_begin;
    for (ListRun run = next_run(first), next; run.end > run.begin; run = next) {
      next = next_run(run);
      scores(run.list, run.begin, run.end);
      for (int query = run.begin; query < run.end; ++query) softmax(run.list, run.tile, query);
      values(run.list, next.list, run.begin, run.end);
    }
  }
};

template <Storage kStorage>
void attend_chunk_sparse(const ChunkTask& task, const ChunkScratch& scratch, const AttentionState& state) {
  SparseChunk<kStorage>{{task, scratch, state}}.run();
}
