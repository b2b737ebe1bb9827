"""Specification of page summaries: what `tts_kernels.append_kv` keeps for each page and KV head."""

from __future__ import annotations

import torch
from torch import Tensor


def page_summaries(k_slots: Tensor, filled: Tensor, kind: str, page_size: int = 16) -> Tensor:
    """Summaries [num_pages, num_kv_heads, S, d] of the first filled[p] keys of each page p; NaN where none.

    Args:
        k_slots: [num_slots, num_kv_heads, d].
        filled: int [num_pages].
        kind: "mean", S = 1: the keys' mean (Kinetics); "minmax", S = 2: each channel's least and largest
            value (Quest).
    """
    heads, d = k_slots.shape[1:]
    summaries = torch.full(
        (len(filled), heads, 1 if kind == "mean" else 2, d), torch.nan, dtype=k_slots.dtype
    )
    for page, count in enumerate(filled.tolist()):
        keys = k_slots[page * page_size : page * page_size + count]
        if count and kind == "mean":
            summaries[page, :, 0] = keys.sum(0) / count
        elif count:
            summaries[page] = torch.stack([keys.amin(0), keys.amax(0)], dim=1)
    return summaries
