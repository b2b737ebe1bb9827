"""Copying whole pages: the tails that a fork's first write must not share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends.choice import kernel
from ..checks import Array, Signature
from ..checks.pages import (
    INT32,
    are_plain,
    kind_of_pages,
    kv_view,
    no_scales,
    page_arrays,
    scale_arrays,
    summary_arrays,
    summary_view,
)
from .operator import register


def _takes(values: Mapping[str, Any]) -> Signature:
    dtype, plain = kind_of_pages(values, layers=1)
    return Signature(
        *page_arrays(dtype, plain=plain, layers=True, written=True),
        Array("copies", "C, 2", INT32),
        *summary_arrays(dtype, layers=True),
        *scale_arrays(dtype, layers=True, written=True),
        home="k_pages",
        absent=no_scales(dtype),
    )


def copy_pages(
    k_pages: Tensor,
    v_pages: Tensor,
    copies: Tensor,
    *,
    summaries: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """Copies pages in every layer of a pool, one (source, destination) pair after the other.

    Args:
        k_pages, v_pages: all layers of a `KVPool`, or plain pages [num_layers, num_pages, num_kv_heads,
            page_size, head_dim] with contiguous channels; changed in place.
        copies: int32 [C, 2] physical (source, destination) pages.
        summaries: [num_layers, num_pages, num_kv_heads, S, head_dim] of the pages' dtype, contiguous; those
            of the copied pages are copied along.
        scales: of int8 pages, float32 [num_layers, num_pages, num_kv_heads, 2]; copied with their pages.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit, or a page is outside the pool.
            Nothing has been written.

    On plain pages (`KVPool` with layout "HND" or "NHD", or a framework's own) all pairs are copied at once:
    destinations are distinct and none is a source. Pages are not checked, which would wait for the device:
    a pair that leads outside the pool is left out.
    """
    _copy_pages(k_pages, v_pages, copies, summaries, scales)


def _copy_pages_cpu(
    k_pages: Tensor,
    v_pages: Tensor,
    copies: Tensor,
    summaries: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    if are_plain(k_pages, v_pages, layers=1):
        return _copy_pages_plain(k_pages, v_pages, copies, summaries, scales)
    _core.copy_pages(
        kv_view(k_pages, v_pages, scales, layers=1),
        k_pages.shape[0],
        (k_pages.stride(0), v_pages.stride(0)),
        copies.data_ptr(),
        copies.shape[0],
        summary_view(summaries),
        torch.get_num_threads(),
    )


def _copy_pages_plain(
    k_pages: Tensor,
    v_pages: Tensor,
    copies: Tensor,
    summaries: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    copy = kernel("copy_pages", k_pages)
    copy(k_pages, v_pages, copies)
    if summaries is not None:  # as keys and values of pages of one token: minima and maxima, or means twice
        copy(summaries[..., :1, :], summaries[..., -1:, :], copies)
    if scales is not None:
        copy(scales[..., None, :1], scales[..., None, 1:], copies)


def _copy_pages_fake(
    k_pages: Tensor,
    v_pages: Tensor,
    copies: Tensor,
    summaries: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    return None


_copy_pages = register(
    "copy_pages(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor copies, Tensor(c!)? summaries=None, "
    "Tensor(d!)? scales=None) -> ()",
    _takes,
    cpu=_copy_pages_cpu,
    cuda=_copy_pages_plain,
    fake=_copy_pages_fake,
)
