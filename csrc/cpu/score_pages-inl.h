// The arithmetic of score_pages for one instruction-set level; included after its tree_attention-inl.h.

inline void multiply_scores(const float* q, int64_t q_stride, int rows, const float* operands, int steps,
                            float* s) {
  static_assert(kScoreStride == kTileTokens);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(operands);
  for (int r = 0, count; r < rows; r += count) {
    count = even_part(rows - r, Vec::kRows);
    with_rows<Vec::kRows>(count,
                          ScoreRows<Product::kFloats>{reinterpret_cast<const uint32_t*>(q + r * q_stride),
                                                      static_cast<int>(q_stride), &words, 1, 0, steps,
                                                      reinterpret_cast<uint32_t*>(s + r * kTileTokens)});
  }
}

inline bool add_softmax(float* logits, int64_t count, float weight, float* scores) {
  F largest = Vec::set1(-__builtin_inff());
  for (int64_t i = 0; i < count; i += Vec::kLanes) largest = Vec::max(Vec::load(logits + i), largest);
  const F minus_m = Vec::set1(-Vec::max_of(largest));
  F sum = Vec::set1(0.0f);
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    const F p = exp2_flushed(Vec::add(Vec::load(logits + i), minus_m));
    sum = Vec::add(sum, p);
    Vec::store(logits + i, p);
  }
  const float total = Vec::sum(sum);
  if (!(total < __builtin_inff())) return false;
  const F factor = Vec::set1(weight / total);
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    Vec::store(scores + i, Vec::fma(Vec::load(logits + i), factor, Vec::load(scores + i)));
  }
  return true;
}

constexpr PageScoreKernels page_score_kernels() { return {multiply_scores, add_softmax}; }
