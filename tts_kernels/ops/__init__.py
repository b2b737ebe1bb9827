"""The operators, registered with torch as torch.ops.tts_kernels.*: one file per operator."""

from .append_kv import append_kv
from .copy_pages import copy_pages
from .gather_kv import gather_kv
from .sample_tokens import sample_tokens
from .score_pages import score_pages
from .select_pages import count_selected, select_pages, select_top_pages
from .tree_attention import tree_attention, tree_attention_with_mass

__all__ = [
    "append_kv",
    "copy_pages",
    "count_selected",
    "gather_kv",
    "sample_tokens",
    "score_pages",
    "select_pages",
    "select_top_pages",
    "tree_attention",
    "tree_attention_with_mass",
]
