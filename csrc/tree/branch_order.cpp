#include "tree/branch_order.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "common/error.h"
#include "common/plan_records.h"

namespace tts {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// The first column from `column` on in which the rows do not all agree.
int32_t agreed_columns(const BranchRow* begin, const BranchRow* end, int32_t column) {
  int32_t agreed = begin->num_pages;
  for (const BranchRow* row = begin + 1; row < end; ++row) {
    const int32_t* last = begin->pages + std::min(agreed, row->num_pages);
    agreed = static_cast<int32_t>(std::mismatch(begin->pages + column, last, row->pages + column).first -
                                  begin->pages);
  }
  return agreed;
}

}  // namespace

std::vector<BranchRow> checked_rows(const BranchTables& in, int64_t num_pages_of_pool) {
  require(in.page_size >= 1 && in.page_size <= kMaxInt32, "page_size: got ", in.page_size,
          ", expected at least 1");
  std::vector<BranchRow> rows;
  rows.reserve(in.num_branches);
  int64_t first_query = 0;
  for (int64_t b = 0; b < in.num_branches; ++b) {
    const int64_t length = in.lengths[b];
    const int64_t num_queries = in.query_lens ? in.query_lens[b] : 1;
    require(0 <= length && length <= in.table_width * in.page_size, "lengths[", b, "]: got ", length,
            ", expected 0 <= length <= ", in.table_width * in.page_size, ", what ", in.table_width,
            " pages of ", in.page_size, " tokens hold; pass wider block_tables");
    require(in.query_lens || length > 0, "lengths[", b,
            "]: got 0, expected at least 1 with a query a branch; pass ",
            "query_lens with 0 to leave a branch out");
    require(0 <= num_queries && num_queries <= length, "query_lens[", b, "]: got ", num_queries,
            ", expected 0 <= query_lens <= ", length, "; lengths count the new tokens too");
    const int32_t* pages = in.block_tables + b * in.table_width;
    const int32_t num_pages = static_cast<int32_t>((length + in.page_size - 1) / in.page_size);
    const int64_t first_written = (length - std::max<int64_t>(num_queries, 1)) / in.page_size;
    int32_t num_holes = 0;
    for (int32_t column = 0; column < num_pages; ++column) {
      if (pages[column] == kHole && column < first_written) {
        ++num_holes;
        continue;
      }
      require(0 <= pages[column] && pages[column] < num_pages_of_pool, "block_tables[", b, ", ", column,
              "]: got ", pages[column], ", expected a page id below ", num_pages_of_pool, "; the first ",
              num_pages, " entries of a branch of ", length, " tokens are used, and the first ",
              first_written, " of them may be -1, an evicted page");
    }
    if (num_queries == 0) continue;
    rows.push_back({pages, num_pages, num_holes, static_cast<int32_t>(length),
                    static_cast<int32_t>(num_queries), static_cast<int32_t>(first_query)});
    first_query += num_queries;
    require(first_query <= kMaxInt32, "query_lens: got more than ", kMaxInt32,
            " queries; plan fewer at once");
  }
  return rows;
}

std::vector<int32_t> sort_depth_first(std::vector<BranchRow>& rows) {
  struct Part {
    int32_t begin, end, column;  // rows [begin, end) agree in the columns before `column`
  };
  std::vector<int32_t> shared(rows.size(), 0);
  std::vector<Part> parts{{0, static_cast<int32_t>(rows.size()), 0}};
  std::unordered_map<int32_t, int32_t> group_of_page;
  std::vector<int32_t> group(rows.size());  // by position of the row
  std::vector<int32_t> group_end;
  std::vector<BranchRow> sorted(rows.size());
  while (!parts.empty()) {
    const auto [begin, end, from] = parts.back();
    parts.pop_back();
    if (end - begin < 2) continue;
    const int32_t column = agreed_columns(&rows[begin], rows.data() + end, from);

    // Groups in order of appearance; group 0 has the rows that end here.
    group_of_page.clear();
    group_end.assign(1, 0);
    for (int32_t i = begin; i < end; ++i) {
      group[i] = 0;
      if (rows[i].num_pages > column) {
        const auto next = static_cast<int32_t>(group_end.size());
        const auto [found, is_new] = group_of_page.try_emplace(rows[i].pages[column], next);
        if (is_new) group_end.push_back(0);
        group[i] = found->second;
      }
      ++group_end[group[i]];
    }
    // Counting sort: group_end holds counts, then the start of each group, finally its end.
    std::exclusive_scan(group_end.begin(), group_end.end(), group_end.begin(), begin);
    for (int32_t i = begin; i < end; ++i) sorted[group_end[group[i]]++] = rows[i];
    std::copy(sorted.begin() + begin, sorted.begin() + end, rows.begin() + begin);

    for (int32_t i = begin + 1; i < group_end[0]; ++i) shared[i] = column;
    for (size_t g = 1; g < group_end.size(); ++g) {
      const int32_t first = group_end[g - 1];
      if (first > begin) shared[first] = column;
      parts.push_back({first, group_end[g], column + 1});
    }
  }
  return shared;
}

int32_t shared_pages(const BranchRow& row, int32_t shared) {
  while (shared > 0 && row.pages[shared - 1] == kHole) --shared;
  return shared;
}

}  // namespace tts
