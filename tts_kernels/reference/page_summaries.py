"""Specification of page summaries: what `tts_kernels.append_kv` keeps for each page and KV head."""

from __future__ import annotations

import torch
from torch import Tensor


def page_summaries(k_slots: Tensor, filled: Tensor, kind: str, page_size: int = 16) -> Tensor:
    """Summaries [num_pages, num_kv_heads, S, channels] of the first filled[p] keys of each page p, or NaN.

    Args:
        k_slots: [num_slots, num_kv_heads, d].
        filled: int [num_pages].
        kind: "mean", S = 1: the keys' mean (Kinetics); "minmax", S = 2: each channel's least and largest
            value (Quest); "quarters", S = 4: the mean of each quarter of the page, of the channels of
            `slow_channels`; a quarter without keys repeats the one before.
    """
    heads, d = k_slots.shape[1:]
    shape = {"mean": (1, d), "minmax": (2, d), "quarters": (4, d // 2)}[kind]
    summaries = torch.full((len(filled), heads, *shape), torch.nan, dtype=k_slots.dtype)
    for page, count in enumerate(filled.tolist()):
        keys = k_slots[page * page_size : page * page_size + count]
        if count and kind == "mean":
            summaries[page, :, 0] = keys.sum(0) / count
        elif count and kind == "quarters":
            slow = keys[:, :, slow_channels(d)]
            size = page_size // 4
            parts = [slow[i : i + size].mean(0) for i in range(0, count, size)]
            for quarter in range(4):
                summaries[page, :, quarter] = parts[min(quarter, len(parts) - 1)]
        elif count:
            summaries[page] = torch.stack([keys.amin(0), keys.amax(0)], dim=1)
    return summaries


def slow_channels(d: int) -> Tensor:
    """Of the pairs (c, c + d / 2) that rotary embeddings turn, the half that they turn the least."""
    pairs = torch.arange(d // 4, d // 2)
    return torch.cat([pairs, pairs + d // 2])
