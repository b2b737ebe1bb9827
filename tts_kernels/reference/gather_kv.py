"""Specification of `tts_kernels.gather_kv`."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_kv(
    k_slots: Tensor, v_slots: Tensor, block_table: Tensor, length: int, page_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Position p lives in slot block_table[p // page_size] * page_size + p % page_size."""
    position = torch.arange(length)
    slots = block_table.long()[position // page_size] * page_size + position % page_size
    return k_slots[slots], v_slots[slots]
