"""What the operators share: the torch library, and the checks of tensors before their addresses go to C++.

A decode step calls the operators once per layer, so each check is one expression that holds for good input,
and a function beside it says what is wrong with bad input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tts_kernels import _core

_LIBRARY = torch.library.Library("tts_kernels", "DEF")  # type: ignore[no-untyped-call]
PAGE_SIZE = 16
DTYPES = (torch.float32, torch.bfloat16, torch.int8)
# Of keys, values, queries and outputs beside pages of int8.
_ROW_DTYPES = (torch.float32, torch.bfloat16)


def register(
    schema: str, *, cpu: Callable[..., Any], cuda: Callable[..., Any] | None = None, fake: Callable[..., Any]
) -> None:
    """Defines torch.ops.tts_kernels.<name> with its kernels and its fake, a maker of empty outputs."""
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, cpu, "CPU")  # type: ignore[no-untyped-call]
    if cuda is not None:
        _LIBRARY.impl(name, cuda, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"tts_kernels::{name}", fake, lib=_LIBRARY)


class PageLayout(NamedTuple):
    """Packed K and V page of one head (csrc/cpu/kv_layout.h)."""

    k_shape: tuple[int, ...]
    v_shape: tuple[int, ...]
    k_strides: tuple[int, ...]
    v_strides: tuple[int, ...]


@lru_cache
def page_layout(head_dim: int, dtype: torch.dtype) -> PageLayout:
    d = head_dim
    if dtype != torch.bfloat16:
        return PageLayout((d, 16), (16, d), (16, 1), (d, 1))
    return PageLayout((d // 2, 16, 2), (8, d, 2), (32, 2, 1), (2 * d, 2, 1))


def check_devices(**tensors: Tensor) -> None:
    """All of an operator's tensors, k_pages among them: torch would run the fake if one were on meta."""
    for tensor in tensors.values():
        if not (isinstance(tensor, Tensor) and tensor.is_cpu):
            break
    else:
        return
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: got {type(tensor).__name__}, expected a torch.Tensor")
        if not (tensor.is_cpu or tensor.is_cuda):
            raise ValueError(
                f"{name}: got a tensor on {tensor.device}, expected cpu or cuda (no kernel for that device)"
            )
    device = tensors["k_pages"].device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, expected {device}, where k_pages are")


def check_int32(name: str, tensor: Tensor, *inner: int) -> None:
    """An index array [n, *inner], contiguous."""
    shape = tensor.shape
    if not (
        tensor.dtype is torch.int32
        and len(shape) == 1 + len(inner)
        and (not inner or shape[1] == inner[0])
        and tensor.is_contiguous()
    ):
        _refuse_int32(name, tensor, *inner)


def _refuse_int32(name: str, tensor: Tensor, *inner: int) -> None:
    if tensor.dtype != torch.int32:
        raise TypeError(f"{name}: got {tensor.dtype}, expected torch.int32")
    if tensor.is_contiguous():
        expected = ", ".join(map(str, ["n", *inner]))
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected [{expected}]")
    raise ValueError(f"{name}: got strides {tensor.stride()}, expected a contiguous tensor")


def check_rows(name: str, rows: Tensor, heads: int | None, head_dim: int, dtype: torch.dtype) -> None:
    """Rows [n, heads, head_dim] with contiguous channels; token and head strides are free.

    `dtype` is that of the pages; the rows have it too, and beside int8 pages float32 or bfloat16.
    """
    shape = rows.shape
    if not (
        (rows.dtype in _ROW_DTYPES if dtype.itemsize == 1 else rows.dtype is dtype)
        and len(shape) == 3
        and shape[2] == head_dim
        and (heads is None or shape[1] == heads)
        and rows.stride(2) == 1
    ):
        _refuse_rows(name, rows, heads, head_dim, dtype)


def _refuse_rows(name: str, rows: Tensor, heads: int | None, head_dim: int, dtype: torch.dtype) -> None:
    if dtype.itemsize == 1 and rows.dtype not in _ROW_DTYPES:
        raise TypeError(f"{name}: got {rows.dtype}, expected torch.float32 or torch.bfloat16")
    if dtype.itemsize > 1 and rows.dtype != dtype:
        raise TypeError(f"{name}: got {rows.dtype}, expected {dtype}, the dtype of the pages")
    if rows.dim() != 3 or rows.shape[2] != head_dim or (heads is not None and rows.shape[1] != heads):
        expected = f"[n, {'heads' if heads is None else heads}, {head_dim}]"
        raise ValueError(f"{name}: got shape {list(rows.shape)}, expected {expected} as the pages have")
    raise ValueError(f"{name}: got strides {rows.stride()}, expected contiguous channels (last stride 1)")


def token_rows(rows: Tensor) -> _core.TokenRows:
    strides = rows.stride()
    return _core.TokenRows(rows.data_ptr(), (strides[0], strides[1]), rows.element_size())


def check_plan_tensors(
    query_order: Tensor, query_position: Tensor, blocks: Tensor, segments: Tensor, pages: Tensor
) -> None:
    check_int32("query_order", query_order)
    check_int32("query_position", query_position)
    check_int32("blocks", blocks, 4)
    check_int32("segments", segments, 5)
    check_int32("pages", pages)


def check_mask(mask: Tensor, heads: int, queries: int) -> None:
    """The mask of a Selection for these pages and queries."""
    if mask.dtype is not torch.int32:
        raise TypeError(f"selection.mask: got {mask.dtype}, expected torch.int32")
    if mask.dim() != 3 or mask.shape[:2] != (heads, queries) or not mask.is_contiguous():
        raise ValueError(
            f"selection.mask: got shape {list(mask.shape)} and strides {mask.stride()}, expected contiguous "
            f"[{heads}, {queries}, words], a row for each KV head and query"
        )


def plan_view(
    query_order: Tensor, query_position: Tensor, blocks: Tensor, segments: Tensor, pages: Tensor
) -> _core.PlanView:
    """What C++ needs to know of a TreePlan's tensors, which outlive the view."""
    return _core.PlanView(
        query_order.data_ptr(),
        query_position.data_ptr(),
        query_order.shape[0],
        blocks.data_ptr(),
        blocks.shape[0],
        segments.data_ptr(),
        segments.shape[0],
        pages.data_ptr(),
        pages.shape[0],
    )


def kv_view(
    k_pages: Tensor, v_pages: Tensor, scales: Tensor | None = None, *, layers: int = 0
) -> _core.KVView:
    """Checks pages [num_pages, num_kv_heads, *packed page] and returns what C++ needs to know of them.

    `layers` leading dimensions are skipped. Page and head strides are free, a packed page is contiguous, and
    so are the scales of int8 pages.
    """
    dtype = k_pages.dtype
    k_shape, v_shape = k_pages.shape, v_pages.shape
    k_strides, v_strides = k_pages.stride(), v_pages.stride()
    inner = layers + 2
    head_dim = v_shape[inner + 1] if len(v_shape) > inner + 1 else 0
    layout = page_layout(head_dim, dtype)
    if not (
        dtype in DTYPES
        and v_pages.dtype is dtype
        and k_shape[inner:] == layout.k_shape
        and v_shape[inner:] == layout.v_shape
        and k_strides[inner:] == layout.k_strides
        and v_strides[inner:] == layout.v_strides
        and k_shape[:inner] == v_shape[:inner]
    ):
        _refuse_pages(k_pages, v_pages, inner, layout)
    check_scales(scales, k_pages, layers=layers)
    return _core.KVView(
        k_pages.data_ptr(),
        v_pages.data_ptr(),
        (k_strides[layers], k_strides[layers + 1]),
        (v_strides[layers], v_strides[layers + 1]),
        k_shape[layers],
        k_shape[layers + 1],
        head_dim,
        dtype.itemsize,
        0 if scales is None else scales.data_ptr(),
    )


def check_scales(scales: Tensor | None, k_pages: Tensor, *, layers: int = 0) -> None:
    """Scales [num_pages, num_kv_heads, 2] after `layers` leading dimensions, of int8 pages and no others."""
    if k_pages.dtype.itemsize > 1:
        if scales is not None:
            raise ValueError(f"scales: got a tensor, expected None: pages of {k_pages.dtype} have no scales")
        return
    expected = [*k_pages.shape[: layers + 2], 2]
    if scales is None:
        raise ValueError(f"scales: got None, expected the scales {expected} of pages of {k_pages.dtype}")
    if scales.dtype != torch.float32:
        raise TypeError(f"scales: got {scales.dtype}, expected torch.float32")
    if list(scales.shape) != expected or not scales.is_contiguous():
        raise ValueError(
            f"scales: got shape {list(scales.shape)} and strides {scales.stride()}, expected a contiguous "
            f"{expected} as the pages have"
        )


def _refuse_pages(k_pages: Tensor, v_pages: Tensor, inner: int, layout: PageLayout) -> None:
    names, dtype = "k_pages, v_pages", k_pages.dtype
    if dtype not in DTYPES or v_pages.dtype != dtype:
        raise TypeError(
            f"{names}: got {dtype} and {v_pages.dtype}, expected both torch.float32, torch.bfloat16 or "
            "torch.int8"
        )
    k_shape, v_shape = k_pages.shape, v_pages.shape
    if k_shape == v_shape and len(k_shape) == inner + 2:
        raise ValueError(
            f"{names}: got plain pages {list(k_shape)} with a TreePlan, which is for packed pages on the "
            "CPU, expected a DevicePlan; make one with DevicePlanner(...).update(...)"
        )
    shapes = (k_shape[inner:], v_shape[inner:])
    if k_shape[:inner] != v_shape[:inner] or shapes != (layout.k_shape, layout.v_shape):
        pages = "[d / 2, 16, 2] and [8, d, 2]" if dtype == torch.bfloat16 else "[d, 16] and [16, d]"
        raise ValueError(
            f"{names}: got shapes {list(k_shape)} and {list(v_shape)}, expected [num_pages, num_kv_heads] "
            f"followed by the packed pages {pages} of head_dim d in {dtype}"
        )
    raise ValueError(
        f"{names}: got strides {k_pages.stride()} and {v_pages.stride()}, expected the dimensions after "
        "num_kv_heads to be contiguous"
    )


def summary_view(
    summaries: Tensor | None, k_pages: Tensor, v_pages: Tensor, *, layers: int = 0
) -> _core.SummaryView:
    """Checks summaries [num_pages, num_kv_heads, S, head_dim] of packed pages, after `layers` leading
    dimensions, and returns what C++ needs to know of them. S is 0 where there are none."""
    if summaries is None:
        return _core.SummaryView(0, 0)
    check_summaries(summaries, (*k_pages.shape[: layers + 2], v_pages.shape[layers + 3]), k_pages)
    return _core.SummaryView(summaries.data_ptr(), summaries.shape[-2])


def check_summaries(summaries: Tensor, expected: tuple[int, ...], k_pages: Tensor) -> None:
    """Whether they are [*expected[:-1], S, expected[-1]]; expected: (layers, pages, heads, head_dim)."""
    shape = summaries.shape
    if not (
        summaries.dtype is summary_dtype(k_pages.dtype)
        and summaries.device == k_pages.device
        and (*shape[:-2], *shape[-1:]) == expected
        and shape[-2] in (1, 2)
        and summaries.is_contiguous()
    ):
        _refuse_summaries(summaries, expected, k_pages)


def summary_dtype(pages: torch.dtype) -> torch.dtype:
    """The dtype of summaries of pages of that dtype."""
    return pages if pages.itemsize > 1 else torch.bfloat16


def _refuse_summaries(summaries: Tensor, expected: tuple[int, ...], k_pages: Tensor) -> None:
    dtype = summary_dtype(k_pages.dtype)
    if summaries.dtype != dtype:
        raise TypeError(f"summaries: got {summaries.dtype}, expected {dtype} for pages of {k_pages.dtype}")
    if summaries.device != k_pages.device:
        raise ValueError(
            f"summaries: got a tensor on {summaries.device}, expected {k_pages.device}, where k_pages are"
        )
    *outer, head_dim = expected
    raise ValueError(
        f"summaries: got shape {list(summaries.shape)} and strides {summaries.stride()}, expected contiguous "
        f"{[*outer, 1, head_dim]} (mean) or {[*outer, 2, head_dim]} (minmax), as the pages have"
    )
