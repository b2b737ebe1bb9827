#include "cuda/tree_attention.cuh"

template void tts::cuda::launch_tree_attention<128>(const AttentionArgs&, DType, int64_t, void*);
