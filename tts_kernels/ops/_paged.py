"""Checks of plain pages [num_pages, num_kv_heads, page_size, head_dim], those of Triton and CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

SCALED_DTYPES = (torch.int8, torch.float8_e4m3fn)  # of 8 bits, with scales
PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16, *SCALED_DTYPES)
_NAMES = "torch.float32, torch.float16, torch.bfloat16, torch.int8 or torch.float8_e4m3fn"


def are_plain(k_pages: Tensor, v_pages: Tensor, *, layers: int = 0) -> bool:
    """Packed pages (csrc/cpu/kv_layout.h) have more dimensions, or K and V of different shapes."""
    return k_pages.dim() == 4 + layers and k_pages.shape == v_pages.shape


def check_plain(head_dim: int, dtype: torch.dtype) -> None:
    """What the kernels for plain pages serve."""
    if not 16 <= head_dim <= 256 or head_dim % 8 != 0:
        raise ValueError(f"head_dim: got {head_dim}, expected a multiple of 8 from 16 to 256")
    if dtype not in PLAIN_DTYPES:
        raise TypeError(f"dtype: got {dtype}, expected {_NAMES}")


def check_plain_pages(k_pages: Tensor, v_pages: Tensor, *, layers: int = 0) -> None:
    """Pages after `layers` leading dimensions; all strides but that of the channels are free."""
    dtype, shape = k_pages.dtype, k_pages.shape
    if not (
        dtype in PLAIN_DTYPES
        and v_pages.dtype is dtype
        and len(shape) == 4 + layers
        and v_pages.shape == shape
        and 16 <= shape[-1] <= 256
        and shape[-1] % 8 == 0
        and shape[-2] >= 1
        and shape[-3] >= 1
        and k_pages.stride(-1) == v_pages.stride(-1) == 1
    ):
        _refuse_plain_pages(k_pages, v_pages, layers)


def _refuse_plain_pages(k_pages: Tensor, v_pages: Tensor, layers: int) -> None:
    names = "k_pages, v_pages"
    if k_pages.dtype not in PLAIN_DTYPES or v_pages.dtype != k_pages.dtype:
        raise TypeError(f"{names}: got {k_pages.dtype} and {v_pages.dtype}, expected both {_NAMES}")
    shape = list(k_pages.shape)
    if len(shape) != 4 + layers or k_pages.shape != v_pages.shape:
        expected = (
            "[num_layers, " * layers + "[" * (1 - layers) + "num_pages, num_kv_heads, page_size, head_dim]"
        )
        raise ValueError(
            f"{names}: got shapes {shape} and {list(v_pages.shape)}, expected both {expected} of any strides"
        )
    if not 16 <= shape[-1] <= 256 or shape[-1] % 8 != 0:
        raise ValueError(f"{names}: got head_dim {shape[-1]}, expected a multiple of 8 from 16 to 256")
    if shape[-3] < 1 or shape[-2] < 1:
        raise ValueError(
            f"{names}: got num_kv_heads {shape[-3]} and page_size {shape[-2]}, expected >= 1 each"
        )
    raise ValueError(
        f"{names}: got strides {k_pages.stride()} and {v_pages.stride()}, expected contiguous channels "
        "(last stride 1)"
    )
