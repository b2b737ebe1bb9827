"""What C++ needs to know of tensors: addresses, sizes and strides. They outlive the views."""

from __future__ import annotations

from torch import Tensor

from .. import _core


def token_rows(rows: Tensor) -> _core.TokenRows:
    strides = rows.stride()
    return _core.TokenRows(rows.data_ptr(), (strides[0], strides[1]), rows.element_size())


def kv_view(
    k_pages: Tensor, v_pages: Tensor, scales: Tensor | None = None, *, layers: int = 0
) -> _core.KVView:
    """What C++ needs to know of packed pages; `layers` leading dimensions are skipped."""
    k_strides, v_strides = k_pages.stride(), v_pages.stride()
    shape = v_pages.shape
    return _core.KVView(
        k_pages.data_ptr(),
        v_pages.data_ptr(),
        (k_strides[layers], k_strides[layers + 1]),
        (v_strides[layers], v_strides[layers + 1]),
        shape[layers],
        shape[layers + 1],
        shape[layers + 3],
        k_pages.element_size(),
        0 if scales is None else scales.data_ptr(),
    )


def summary_view(summaries: Tensor | None) -> _core.SummaryView:
    if summaries is None:
        return _core.SummaryView(0, 0)
    return _core.SummaryView(summaries.data_ptr(), summaries.shape[-2])
