"""The operators, registered with torch as torch.ops.tts_kernels.*: one file per operator."""

from tts_kernels.ops.append_kv import append_kv
from tts_kernels.ops.copy_pages import copy_pages
from tts_kernels.ops.gather_kv import gather_kv
from tts_kernels.ops.packed_linear import packed_linear
from tts_kernels.ops.rms_norm import rms_norm
from tts_kernels.ops.rotate_qkv import rotate_qkv
from tts_kernels.ops.sample_tokens import sample_tokens
from tts_kernels.ops.score_pages import score_pages
from tts_kernels.ops.select_pages import count_selected, select_pages, select_top_pages
from tts_kernels.ops.tree_attention import tree_attention

__all__ = [
    "append_kv",
    "copy_pages",
    "count_selected",
    "gather_kv",
    "packed_linear",
    "rms_norm",
    "rotate_qkv",
    "sample_tokens",
    "score_pages",
    "select_pages",
    "select_top_pages",
    "tree_attention",
]
