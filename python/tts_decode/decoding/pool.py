"""Sizes a model's KV pool, and chooses its dtype and layout."""

from __future__ import annotations

import torch

from tts_kernels import KVPool
from tts_kernels.checks import is_integer, shown
from tts_kernels.pool import default_bytes, page_bytes

from ..model.hf import HFEngine
from ..model.parallel.ranks import Ranks
from .kv_budget import KVBudget

_PAGE_SIZE = 16  # tokens; the only size that the CPU kernels support
_MOST_PAGES = (2**31 - 1) // _PAGE_SIZE  # slots are int32


def make_pool(
    engine: HFEngine,
    kv_bytes: int | KVBudget | None,
    kv_dtype: torch.dtype | None,
    summaries: str | None,
    *,
    on_host: bool,
    ranks: Ranks | None = None,
) -> KVPool:
    """Makes a pool for the engine's model, with the same number of pages on all of its ranks.

    Args:
        kv_bytes, kv_dtype: same as for `TreeDecoder`.
        summaries: of pages, same as for `KVPool`.
        on_host: whether the CPU's kernels serve.
        ranks: that hold the model together. `kv_bytes` is per rank; by default the ranks of a machine share
            it.

    Raises:
        TypeError, ValueError: an argument is out of range, unsupported, or more than is available.
    """
    if isinstance(kv_bytes, KVBudget):
        if not on_host:
            raise ValueError(
                f"kv_bytes: a KVBudget serves models on the CPU, this one is on {engine.device}, where a "
                "pool takes its memory at once; give each decoder its bytes"
            )
        kv_bytes = kv_bytes.total
    elif kv_bytes is None:
        shared = 1 if ranks is None or not on_host else ranks.on_this_host
        kv_bytes = default_bytes(engine.device) // shared
    elif not is_integer(kv_bytes):
        raise TypeError(f"kv_bytes: got {shown(kv_bytes)}, expected an int or a KVBudget")
    shape = engine.kv_shape
    dtype = _dtype(engine, kv_dtype, on_host=on_host)
    least = page_bytes(shape.num_layers, shape.num_kv_heads, shape.head_dim, _PAGE_SIZE, dtype, summaries)
    if kv_bytes < least:
        raise ValueError(f"kv_bytes: got {kv_bytes}, expected at least one page of {least} bytes")
    if ranks is not None:
        pages = min(kv_bytes // least, _MOST_PAGES)
        kv_bytes = min(count for (count,) in ranks.gather_numbers([pages])) * least
    try:
        return KVPool(
            num_layers=shape.num_layers,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            budget_bytes=kv_bytes,
            dtype=dtype,
            page_size=_PAGE_SIZE,
            device=engine.device,
            layout="packed" if on_host else "HND",
            summaries=summaries,
        )
    except MemoryError as cause:
        raise ValueError(f"kv_bytes: got {kv_bytes}, more than the system grants; lower it") from cause


def _dtype(engine: HFEngine, kv_dtype: torch.dtype | None, *, on_host: bool) -> torch.dtype:
    if kv_dtype is None or kv_dtype == engine.dtype:
        return engine.dtype
    if kv_dtype != torch.int8:
        raise ValueError(
            f"kv_dtype: got {shown(kv_dtype)}, expected None, torch.int8 or the model's {engine.dtype}"
        )
    if not on_host:
        raise ValueError(
            f"kv_dtype: got torch.int8 with a model on {engine.device}, expected {engine.dtype}; int8 is "
            "served on the CPU only as yet"
        )
    return kv_dtype
