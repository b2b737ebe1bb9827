"""Triton backend: one launcher per operator, over plain pages of any strides. One file per operator.

Launchers trust their arguments: the operators (tts_kernels/ops) have checked them.
"""

from .append_kv import append_kv
from .append_scaled import append_scaled
from .copy_pages import copy_pages
from .gather_kv import gather_kv
from .launch_config import INTERPRETED
from .page_mass import page_mass
from .page_summaries import summarize_pages
from .score_pages import score_pages
from .select_pages import select_top_pages
from .tree_attention import sparse_attention, tree_attention

__all__ = [
    "INTERPRETED",
    "append_kv",
    "append_scaled",
    "copy_pages",
    "gather_kv",
    "page_mass",
    "score_pages",
    "select_top_pages",
    "sparse_attention",
    "summarize_pages",
    "tree_attention",
]
