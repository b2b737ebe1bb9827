"""What the operators share: the torch library, and the checks of tensors before their addresses go to C++."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core

LIBRARY = torch.library.Library("tts_kernels", "DEF")
PAGE_SIZE = 16
DTYPES = (torch.float32, torch.bfloat16)


def page_shapes(head_dim: int, dtype: torch.dtype) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Inner shapes of the packed K and V page of one head (csrc/cpu/kv_layout.h)."""
    if dtype == torch.float32:
        return (head_dim, PAGE_SIZE), (PAGE_SIZE, head_dim)
    return (head_dim // 2, PAGE_SIZE, 2), (PAGE_SIZE // 2, head_dim, 2)


def check_cpu(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(
            f"{name}: got a tensor on {tensor.device}, expected cpu (there is no kernel for that device)"
        )


def check_int32(name: str, tensor: Tensor, *inner: int) -> None:
    """An index array [n, *inner], contiguous on the CPU."""
    check_cpu(name, tensor)
    if tensor.dtype != torch.int32:
        raise TypeError(f"{name}: got {tensor.dtype}, expected torch.int32")
    if tensor.dim() != 1 + len(inner) or tensor.shape[1:] != inner:
        raise ValueError(
            f"{name}: got shape {list(tensor.shape)}, expected {' '.join(map(str, ['[n', *inner]))}]"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: got strides {tensor.stride()}, expected a contiguous tensor")


def check_rows(name: str, rows: Tensor, heads: int | None, head_dim: int, dtype: torch.dtype) -> None:
    """Rows [n, heads, head_dim] of the pool's dtype with contiguous channels; token and head strides are free."""
    check_cpu(name, rows)
    if rows.dtype != dtype:
        raise TypeError(f"{name}: got {rows.dtype}, expected {dtype}, the dtype of the pages")
    if rows.dim() != 3 or rows.shape[2] != head_dim or (heads is not None and rows.shape[1] != heads):
        expected = f"[n, {'heads' if heads is None else heads}, {head_dim}]"
        raise ValueError(f"{name}: got shape {list(rows.shape)}, expected {expected} as the pages have")
    if rows.stride(2) != 1:
        raise ValueError(f"{name}: got strides {rows.stride()}, expected contiguous channels (last stride 1)")


def token_rows(rows: Tensor) -> _core.TokenRows:
    token_stride, head_stride, _ = rows.stride()
    return _core.TokenRows(rows.data_ptr(), (token_stride, head_stride))


def kv_view(k_pages: Tensor, v_pages: Tensor, *, layers: int = 0) -> _core.KVView:
    """Checks a pool's pages [num_pages, num_kv_heads, *packed page] and returns what C++ needs to know of them.

    `layers` leading dimensions are skipped. Page and head strides are free, a packed page is contiguous.
    """
    check_cpu("k_pages", k_pages)
    check_cpu("v_pages", v_pages)
    dtype = k_pages.dtype
    if dtype not in DTYPES or v_pages.dtype != dtype:
        raise TypeError(
            f"k_pages, v_pages: got {dtype} and {v_pages.dtype}, expected both torch.float32 or both torch.bfloat16"
        )
    inner = layers + 2
    k_shape, v_shape = k_pages.shape, v_pages.shape
    head_dim = v_shape[inner + 1] if len(v_shape) > inner + 1 else 0
    k_inner, v_inner = page_shapes(head_dim, dtype)
    if k_shape[:inner] != v_shape[:inner] or k_shape[inner:] != k_inner or v_shape[inner:] != v_inner:
        raise ValueError(
            f"k_pages, v_pages: got shapes {list(k_shape)} and {list(v_shape)}, expected "
            f"[num_pages, num_kv_heads] followed by a packed page of {PAGE_SIZE} tokens in {dtype}, "
            f"for head_dim d {page_shapes_text(dtype)}"
        )
    k_strides, v_strides = k_pages.stride(), v_pages.stride()
    if not (_contiguous_inside(k_inner, k_strides[inner:]) and _contiguous_inside(v_inner, v_strides[inner:])):
        raise ValueError(
            f"k_pages, v_pages: got strides {k_strides} and {v_strides}, expected the dimensions after "
            "num_kv_heads to be contiguous"
        )
    return _core.KVView(
        k_pages.data_ptr(),
        v_pages.data_ptr(),
        (k_strides[layers], k_strides[layers + 1]),
        (v_strides[layers], v_strides[layers + 1]),
        k_shape[layers],
        k_shape[layers + 1],
        head_dim,
        dtype == torch.bfloat16,
    )


def page_shapes_text(dtype: torch.dtype) -> str:
    return "[d, 16] and [16, d]" if dtype == torch.float32 else "[d / 2, 16, 2] and [8, d, 2]"


def _contiguous_inside(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected:
            return False
        expected *= size
    return True
