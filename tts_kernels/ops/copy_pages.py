"""Copies whole pages: the tails that must not be shared when a fork first writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends.choice import kernel
from ..checks import Array, Signature
from ..checks.pages import INT32, kind_of_pages, page_arrays, scale_arrays, summary_arrays
from .operator import register


def _describe(dtype: torch.dtype, plain: bool) -> Signature:
    return Signature(
        *page_arrays(dtype, plain=plain, layers=True, written=True),
        Array("copies", "C, 2", INT32),
        *summary_arrays(dtype, plain=plain, layers=True),
        *scale_arrays(dtype, layers=True, written=True),
        home="k_pages",
        plain=plain,
    )


def copy_pages(
    k_pages: Tensor,
    v_pages: Tensor,
    copies: Tensor,
    *,
    summaries: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """Copies pages in every layer of a pool, one (source, destination) pair at a time.

    Args:
        k_pages, v_pages: all layers of a `KVPool`, or plain pages [num_layers, num_pages, num_kv_heads,
            page_size, head_dim] with contiguous channels; changed in place.
        copies: int32 [C, 2] physical (source, destination) pages.
        summaries: [num_layers, num_pages, num_kv_heads, S, channels] of the pages' dtype, contiguous; copied
            with their pages.
        scales: for int8 pages, float32 [num_layers, num_pages, num_kv_heads, 2]; copied with their pages.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit, or a page is outside the pool.
            Nothing has been written.

    On plain pages (`KVPool` with layout "HND" or "NHD", or a framework's own) all pairs are copied at once:
    destinations must be distinct and none may be a source. Pages are not checked, because the check would
    wait for the device; a pair with a page outside the pool is left out.
    """
    _copy_pages(k_pages, v_pages, copies, summaries, scales)


def _copy_packed(a: Any) -> None:
    _core.copy_pages(
        _core.KVView(a.k_pages, a.v_pages, a.scales, layers=1),
        a.k_pages.shape[0],
        (a.k_pages.stride(0), a.v_pages.stride(0)),
        a.copies.data_ptr(),
        a.copies.shape[0],
        _core.SummaryView(a.summaries, layers=1),
        torch.get_num_threads(),
    )


def _copy_plain(a: Any) -> None:
    copy = kernel("copy_pages", a.k_pages)
    copy(a.k_pages, a.v_pages, a.copies)
    if a.summaries is not None:  # as keys and values of pages of one token: minima and maxima, or means twice
        copy(a.summaries[..., :1, :], a.summaries[..., -1:, :], a.copies)
    if a.scales is not None:
        copy(a.scales[..., None, :1], a.scales[..., None, 1:], a.copies)


_copy_pages = register(
    "copy_pages",
    "k_pages v_pages copies summaries scales",
    lambda values: _describe(*kind_of_pages(values, layers=1)),
    _describe(torch.float32, plain=False),
    cpu=_copy_packed,
    plain=_copy_plain,
)
