"""Specification of `tts_kernels.append_kv`."""

from __future__ import annotations

from torch import Tensor


def append_kv(k: Tensor, v: Tensor, k_slots: Tensor, v_slots: Tensor, slots: Tensor) -> None:
    """Token i goes to slot slots[i] = page * page_size + offset; k_slots, v_slots: [num_slots, num_kv_heads, d]."""
    k_slots[slots.long()] = k.to(k_slots.dtype)
    v_slots[slots.long()] = v.to(v_slots.dtype)
