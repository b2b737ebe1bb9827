"""Triton backend: a launcher for each operator, over plain pages of any strides. One file per operator.

Launchers trust their arguments, which the operators (tts_kernels/ops) have checked.
"""

from tts_kernels.triton.append_kv import append_kv
from tts_kernels.triton.append_scaled import append_scaled
from tts_kernels.triton.copy_pages import copy_pages
from tts_kernels.triton.gather_kv import gather_kv
from tts_kernels.triton.page_mass import page_mass
from tts_kernels.triton.page_summaries import summarize_pages
from tts_kernels.triton.score_pages import score_pages
from tts_kernels.triton.select_pages import select_top_pages
from tts_kernels.triton.tree_attention import INTERPRETED, sparse_attention, tree_attention

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
