"""Descriptions of pages of keys and values, and of plans over them, that the operators share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _core
from .arrays import Array, require_dense
from .signature import Number, Rule
from .values import listed_dtypes

PAGE_SIZE = 16
DTYPES = (torch.float32, torch.bfloat16, torch.int8)  # of packed pages
SCALED_DTYPES = (torch.int8, torch.float8_e4m3fn)  # 8-bit, with scales
PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16, *SCALED_DTYPES)
FLOAT32 = (torch.float32,)
INT32 = (torch.int32,)
CORE_DTYPES = {  # as C++ names them
    torch.float32: _core.DType.float32,
    torch.bfloat16: _core.DType.bfloat16,
    torch.int8: _core.DType.int8,
}
PLAIN_HEAD_DIMS = range(16, 257, 8)
PACKED_HEAD_DIMS = range(32, 257, 16)
PLAIN_HEAD_DIM = "16 <= head_dim <= 256 and head_dim % 8 == 0"
PACKED_HEAD_DIM = "32 <= head_dim <= 256 and head_dim % 16 == 0"
# A TreePlan. The kernels themselves check its header and every index (csrc/tree/plan_buffer.h,
# csrc/cpu/check_plan.cpp).
PLAN = Array("plan", "plan_ints", INT32)
# P of scores and masses: the most pages that any query sees.
COLUMNS = (Number("columns", "0 <= columns < 2**31"), Rule("plan.max_columns", "columns <= plan_ints"))


def packed_page(head_dim: int, dtype: torch.dtype) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of the packed K and V page of one head (csrc/cpu/kv_layout.h)."""
    if dtype == torch.bfloat16:
        return (head_dim // 2, 16, 2), (8, head_dim, 2)
    return (head_dim, 16), (16, head_dim)


SUMMARIES = ("mean", "minmax", "quarters")
# The shapes of a page's summary [S, channels] for one head; see `summary_shape`.
PLAIN_SUMMARY_SHAPE = "S in (1, 2) and channels == head_dim"
SUMMARY_SHAPE = f"{PLAIN_SUMMARY_SHAPE} or S == 4 and channels == head_dim // 2"


def summary_shape(kind: str | None, head_dim: int) -> tuple[int, int]:
    """Returns (S, channels): mean; minimum and maximum; four quarters' means, of half the channels; or
    none."""
    if kind == "quarters":
        return 4, head_dim // 2
    return {None: 0, "mean": 1, "minmax": 2}[kind], head_dim


def summary_dtype(pages: torch.dtype) -> torch.dtype:
    """Returns the dtype of the summaries of pages of this dtype."""
    return pages if pages.itemsize > 1 else torch.bfloat16


def row_dtypes(pages: torch.dtype) -> tuple[torch.dtype, ...]:
    """Returns the dtypes of queries, keys, values and outputs that go with such pages."""
    return (pages,) if pages.itemsize > 1 else (torch.float32, torch.bfloat16)


def are_plain(k_pages: Tensor, v_pages: Tensor, *, layers: int = 0) -> bool:
    """Whether pages are plain.

    Packed ones (csrc/cpu/kv_layout.h) have more dimensions, or end in tokens of K and channels of V.
    """
    return k_pages.dim() == v_pages.dim() == 4 + layers and k_pages.shape[-1] == v_pages.shape[-1]


def kind_of_pages(values: Mapping[str, Any], *, layers: int = 0) -> tuple[torch.dtype, bool]:
    """Returns the dtype of k_pages and whether they are plain: a description of arguments depends on them."""
    k_pages, v_pages = values["k_pages"], values["v_pages"]
    require_dense("k_pages", k_pages, fake=True)
    require_dense("v_pages", v_pages, fake=True)
    return k_pages.dtype, are_plain(k_pages, v_pages, layers=layers)


def page_arrays(
    dtype: torch.dtype, *, plain: bool, layers: bool = False, written: bool = False
) -> tuple[Array | Rule, ...]:
    """Describes k_pages and v_pages of this dtype, for one layer or, with a leading dimension, for all."""
    outer = "num_layers, num_pages" if layers else "num_pages"
    dtypes: tuple[torch.dtype, ...]
    if plain:
        k = v = "num_kv_heads, page_size, head_dim"
        dtypes, inner, head_dims, slots = PLAIN_DTYPES, 1, PLAIN_HEAD_DIM, "num_pages * page_size <= 2**31"
        least = "num_kv_heads >= 1 and page_size >= 1"
    else:
        k, v = "num_kv_heads, head_dim, 16", "num_kv_heads, 16, head_dim"
        if dtype == torch.bfloat16:
            k, v = "num_kv_heads, head_dim // 2, 16, 2", "num_kv_heads, 8, head_dim, 2"
        dtypes, inner, head_dims, slots = DTYPES, k.count(","), PACKED_HEAD_DIM, "num_pages * 16 <= 2**31"
        least = "num_kv_heads >= 1"
    return (
        Array("k_pages", f"{outer}, {k}", dtypes, packed=inner, written=written),
        Array("v_pages", f"{outer}, {v}", dtypes, like="k_pages", packed=inner, written=written),
        Rule("k_pages, v_pages", head_dims),
        Rule("k_pages, v_pages", least),
        Rule("k_pages, v_pages", slots),
    )


def scale_arrays(dtype: torch.dtype, *, layers: bool = False, written: bool = False) -> tuple[Array, ...]:
    """Describes the scales of 8-bit pages; other pages have none."""
    outer = "num_layers, num_pages" if layers else "num_pages"
    absent = "" if dtype.itemsize == 1 else f"pages of {dtype} have no scales"
    return (Array("scales", f"{outer}, num_kv_heads, 2", FLOAT32, written=written, absent=absent),)


def summary_arrays(
    dtype: torch.dtype, *, plain: bool = False, layers: bool = False
) -> tuple[Array | Rule, ...]:
    """Describes the summaries kept beside pages of this dtype. Plain pages have no quarters."""
    outer = "num_layers, num_pages" if layers else "num_pages"
    shape = f"{outer}, num_kv_heads, S, channels"
    return (
        Array("summaries", shape, (summary_dtype(dtype),), written=True, optional=True),
        Rule("summaries", PLAIN_SUMMARY_SHAPE if plain else SUMMARY_SHAPE),
    )


def check_plain(head_dim: int, dtype: torch.dtype) -> None:
    """Raises unless the kernels for plain pages serve this head_dim and dtype."""
    if head_dim not in PLAIN_HEAD_DIMS:
        raise ValueError(f"head_dim: got {head_dim}, expected a multiple of 8 from 16 to 256")
    if dtype not in PLAIN_DTYPES:
        raise TypeError(f"dtype: got {dtype}, expected {listed_dtypes(PLAIN_DTYPES)}")
