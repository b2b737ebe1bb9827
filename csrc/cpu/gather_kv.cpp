#include "common/error.h"
#include "cpu/kv_ops.h"
#include "cpu/runtime/parallel.h"

namespace tts {
namespace {

template <class Element>
void gather_head(const KVView& kv, const int32_t* block_table, int64_t length, const TokenRows& k,
                 const TokenRows& v, int head) {
  for (int64_t position = 0; position < length; ++position) {
    const int page = block_table[position / kPageSize], t = static_cast<int>(position % kPageSize);
    const Element* k_in = k_page<Element>(kv, page, head);
    const Element* v_in = v_page<Element>(kv, page, head);
    Element* k_row = static_cast<Element*>(k.data) + position * k.token_stride + head * k.head_stride;
    Element* v_row = static_cast<Element*>(v.data) + position * v.token_stride + head * v.head_stride;
    for (int c = 0; c < kv.head_dim; ++c) {
      k_row[c] = k_in[k_index<Element>(t, c)];
      v_row[c] = v_in[v_index<Element>(t, c, kv.head_dim)];
    }
  }
}

void gather_int8_head(const KVView& kv, const int32_t* block_table, int64_t length, const TokenRows& k,
                      const TokenRows& v, int head) {
  for (int64_t position = 0; position < length; ++position) {
    const int page = block_table[position / kPageSize], t = static_cast<int>(position % kPageSize);
    const int8_t* k_in = k_page<int8_t>(kv, page, head);
    const int8_t* v_in = v_page<int8_t>(kv, page, head);
    const float* scales = page_scales(kv, page, head);
    float* k_row = static_cast<float*>(k.data) + position * k.token_stride + head * k.head_stride;
    float* v_row = static_cast<float*>(v.data) + position * v.token_stride + head * v.head_stride;
    for (int c = 0; c < kv.head_dim; ++c) {
      k_row[c] = static_cast<float>(k_in[k_index<int8_t>(t, c)]) * scales[0];
      v_row[c] = static_cast<float>(v_in[v_index<int8_t>(t, c, kv.head_dim)]) * scales[1];
    }
  }
}

}  // namespace

void gather_kv(const KVView& kv, const int32_t* block_table, int64_t num_table_pages, int64_t length,
               const TokenRows& k, const TokenRows& v, int num_threads) {
  check_view(kv);
  require(length >= 0 && length <= num_table_pages * kPageSize, "length: got ", length,
          ", expected 0 <= length <= ", num_table_pages * kPageSize, " (the block table has ",
          num_table_pages, " pages of 16 tokens)");
  for (int64_t i = 0; i * kPageSize < length; ++i) {
    require(block_table[i] >= 0 && block_table[i] < kv.num_pages, "block_table[", i, "]: got page ",
            block_table[i], ", expected 0 <= page < ", kv.num_pages);
  }
  parallel_for(num_threads, kv.num_kv_heads, [&](int64_t head) {
    if (kv.dtype == DType::kInt8) {
      gather_int8_head(kv, block_table, length, k, v, static_cast<int>(head));
    } else if (kv.dtype == DType::kFloat32) {
      gather_head<float>(kv, block_table, length, k, v, static_cast<int>(head));
    } else {
      gather_head<uint16_t>(kv, block_table, length, k, v, static_cast<int>(head));
    }
  });
}

}  // namespace tts
