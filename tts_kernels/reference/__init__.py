"""The specification of every operator: float64 torch over plain tensors, read by tests and benches."""

from tts_kernels.reference.append_kv import append_kv
from tts_kernels.reference.gather_kv import gather_kv
from tts_kernels.reference.int8_pages import append_int8, dequantize, quantize
from tts_kernels.reference.packed_linear import packed_linear
from tts_kernels.reference.page_summaries import page_summaries
from tts_kernels.reference.rms_norm import rms_norm
from tts_kernels.reference.rotate_qkv import rotate_qkv
from tts_kernels.reference.sample_tokens import sample_tokens
from tts_kernels.reference.score_pages import score_pages
from tts_kernels.reference.select_top_pages import select_top_pages
from tts_kernels.reference.tree_attention import tree_attention

__all__ = [
    "append_int8",
    "append_kv",
    "dequantize",
    "gather_kv",
    "packed_linear",
    "page_summaries",
    "quantize",
    "rms_norm",
    "rotate_qkv",
    "sample_tokens",
    "score_pages",
    "select_top_pages",
    "tree_attention",
]
