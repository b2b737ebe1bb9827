"""Shared-prefix KV storage and attention over search trees."""

import atexit
from importlib.metadata import PackageNotFoundError, version

try:
    from tts_kernels._core import Append, CapacityExceeded, KVTree, OutOfPages, TreeStats
except ModuleNotFoundError as missing:
    raise ImportError(
        f"{__path__[0]} lacks its compiled module, as a source tree does: run Python in another folder, or "
        "install with pip install --editable ."
    ) from missing
from tts_kernels.decoder_layers import DecoderLayer, DecoderLayers
from tts_kernels.device_plan import DevicePlan, WorkCapacity
from tts_kernels.device_planner import DevicePlanner
from tts_kernels.ops import (
    append_kv,
    copy_pages,
    count_selected,
    gather_kv,
    packed_linear,
    rms_norm,
    rotate_qkv,
    sample_tokens,
    score_pages,
    select_pages,
    select_top_pages,
    tree_attention,
)
from tts_kernels.packed_weight import PackedWeight
from tts_kernels.plan import TreePlan, plan
from tts_kernels.pool import KVPool
from tts_kernels.selection import Selection, SelectionCounts
from tts_kernels.shutdown import park_daemon_threads

__all__ = [
    "Append",
    "CapacityExceeded",
    "DecoderLayer",
    "DecoderLayers",
    "DevicePlan",
    "DevicePlanner",
    "KVPool",
    "KVTree",
    "OutOfPages",
    "PackedWeight",
    "Selection",
    "SelectionCounts",
    "TreePlan",
    "TreeStats",
    "WorkCapacity",
    "__version__",
    "append_kv",
    "copy_pages",
    "count_selected",
    "gather_kv",
    "packed_linear",
    "plan",
    "rms_norm",
    "rotate_qkv",
    "sample_tokens",
    "score_pages",
    "select_pages",
    "select_top_pages",
    "tree_attention",
]

try:
    __version__ = version("tts-kernels")
except PackageNotFoundError:  # built in place and not installed, as `make gpu-check` does
    __version__ = "unknown"

atexit.register(park_daemon_threads)
