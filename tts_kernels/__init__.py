"""Shared-prefix KV storage and attention over search trees."""

import atexit
import logging
from importlib.metadata import PackageNotFoundError, version

try:
    from ._core import Append, KVTree, TreeStats
except ModuleNotFoundError as missing:
    raise ImportError(
        f"{__path__[0]} lacks its compiled module, as a source tree does: run Python in another folder, or "
        "install with pip install --editable ."
    ) from missing
from .backends.launch import WorkCapacity
from .errors import CapacityError, OutOfPagesError, TTSError
from .layers.decoder_layer import DecoderLayer
from .layers.decoder_layers import DecoderLayers
from .layers.experts import Experts, SharedExpert
from .layers.packed_linear import packed_linear
from .layers.packed_weight import PackedWeight
from .layers.quant_form import QuantForm
from .layers.quantised_weight import QuantisedWeight
from .layers.rms_norm import rms_norm
from .layers.rotate_qkv import rotate_qkv
from .layers.weight import Weight
from .ops import (
    append_kv,
    copy_pages,
    count_selected,
    gather_kv,
    sample_tokens,
    score_pages,
    select_pages,
    select_top_pages,
    tree_attention,
    tree_attention_with_mass,
)
from .plans.device_plan import DevicePlan
from .plans.device_planner import DevicePlanner
from .plans.selection import Selection, SelectionCounts
from .plans.tree_plan import TreePlan, plan
from .pool import KVPool
from .shutdown import park_daemon_threads

__all__ = [
    "Append",
    "CapacityError",
    "DecoderLayer",
    "DecoderLayers",
    "DevicePlan",
    "DevicePlanner",
    "Experts",
    "KVPool",
    "KVTree",
    "OutOfPagesError",
    "PackedWeight",
    "QuantForm",
    "QuantisedWeight",
    "Selection",
    "SelectionCounts",
    "SharedExpert",
    "TTSError",
    "TreePlan",
    "TreeStats",
    "Weight",
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
    "tree_attention_with_mass",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
try:
    __version__ = version("tts-kernels")
except PackageNotFoundError:  # built in place and not installed, as `make gpu-check` does
    __version__ = "unknown"

atexit.register(park_daemon_threads)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
