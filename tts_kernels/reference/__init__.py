"""The specification of every operator: float64 torch over plain tensors, read by tests and benches."""

from .append_kv import append_kv
from .gather_kv import gather_kv
from .int8_pages import append_int8, dequantize, quantize
from .int8_rows import int8_rows
from .packed_linear import packed_linear
from .page_summaries import page_summaries
from .rms_norm import rms_norm
from .rotate_qkv import rotate_qkv
from .sample_tokens import sample_tokens
from .score_pages import score_pages
from .select_top_pages import select_top_pages
from .tree_attention import tree_attention

__all__ = [
    "append_int8",
    "append_kv",
    "dequantize",
    "gather_kv",
    "int8_rows",
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
