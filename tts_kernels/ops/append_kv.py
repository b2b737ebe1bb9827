"""Writes new keys and values into their page slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends.choice import kernel
from ..checks import Array, Signature
from ..checks.pages import INT32, kind_of_pages, page_arrays, row_dtypes, scale_arrays, summary_arrays
from .operator import register


def _describe(dtype: torch.dtype, plain: bool) -> Signature:
    rows = "T, num_kv_heads, head_dim"
    return Signature(
        *page_arrays(dtype, plain=plain, written=True),
        Array("k", rows, row_dtypes(dtype), packed=1),
        Array("v", rows, row_dtypes(dtype), like=None if plain else "k", packed=1),
        Array("slots", "T", INT32),
        *summary_arrays(dtype, plain=plain),
        *scale_arrays(dtype, written=True),
        home="k_pages",
        plain=plain,
    )


def append_kv(
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    *,
    summaries: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """Writes the keys and values of T tokens into one layer's pages.

    Args:
        k, v: [T, num_kv_heads, head_dim] of the pages' dtype, or float32 or bfloat16 for int8 pages;
            contiguous channels, any other strides.
        k_pages, v_pages: one layer of a `KVPool`, or plain pages [num_pages, num_kv_heads, page_size,
            head_dim] with contiguous channels; changed in place.
        slots: int32 [T], physical slot page * page_size + offset of each token, all distinct.
        summaries: [num_pages, num_kv_heads, S, channels] of the pages' dtype, contiguous; changed in place. S
            = 1: mean key of each page (Kinetics). S = 2: smallest and largest value of each channel (Quest).
            Both have head_dim channels. S = 4, packed pages only: means of each quarter of the page, of the
            head_dim / 2 slow channels (see `score_pages`); a quarter without keys repeats the one before. A
            summary covers a page's slots from its first to the last that this call writes: pages fill in
            order. On plain pages Triton computes the summaries, whichever backend does the rest.
        scales: float32 [num_pages, num_kv_heads, 2], the scales of K and V of each page, with 8-bit pages
            only; changed in place.

    int8 pages hold round(value / scale) to nearest even, with scale = (largest |value| of the page and head)
    / 127, or 1 if the largest value is 0. A call that writes offset 0 of a page starts the page over. Any
    other call that needs a larger scale quantizes the page's earlier tokens again, which moves them by up to
    half a step each time. All tokens that a call writes to one page share one scale. A NaN or an infinity
    makes the scale NaN until the page starts over. Summaries are bfloat16 and computed from the quantized
    keys.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit, or a slot is outside the pool.
            Nothing has been written.

    On plain pages (`KVPool` with layout "HND" or "NHD", or a framework's own) slots are not checked, because
    the check would wait for the device. Tokens with a slot outside the pool are left out. If several tokens
    have one slot, any of them may remain; on packed pages the last one does. On plain 8-bit pages the tokens
    of a page must be consecutive and in slot order, as from `KVTree.append`.
    """
    _append_kv(k, v, k_pages, v_pages, slots, summaries, scales)


def _append_packed(a: Any) -> None:
    _core.append_kv(
        _core.KVView(a.k_pages, a.v_pages, a.scales),
        _core.TokenRows(a.k),
        _core.TokenRows(a.v),
        a.slots.data_ptr(),
        a.slots.shape[0],
        _core.SummaryView(a.summaries),
        torch.get_num_threads(),
    )


def _append_plain(a: Any) -> None:
    if a.scales is None:
        kernel("append_kv", a.k_pages)(a.k, a.v, a.k_pages, a.v_pages, a.slots)
    else:
        kernel("append_scaled", a.k_pages)(a.k, a.v, a.k_pages, a.v_pages, a.slots, a.scales)
    if a.summaries is not None:
        kernel("summarize_pages", a.k_pages)(a.k_pages, a.slots, a.summaries, a.scales)


_append_kv = register(
    "append_kv",
    "k v k_pages v_pages slots summaries scales",
    lambda values: _describe(*kind_of_pages(values)),
    _describe(torch.float32, plain=False),
    cpu=_append_packed,
    plain=_append_plain,
)
