"""Launchers of the CUDA C++ kernels for plain pages on a GPU (csrc/cuda). The operators check shapes.

All of them launch on torch's current stream of the tensors' device, which must be the current device. They
wait for nothing and allocate nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core
from .launch import AttentionOptions, WorkLaunch

_HEAD_DIMS = (64, 128)  # of tree_attention
_HALF = (torch.float16, torch.bfloat16)


def supports(op: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether this build has a kernel of the operator for pages of this dtype and head_dim."""
    if not _core.cuda_archs:
        return False
    if op == "tree_attention":
        return dtype in _HALF and head_dim in _HEAD_DIMS
    return op in ("append_kv", "copy_pages") and dtype in (torch.float32, *_HALF)


def append_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """Writes keys and values into their slots. Slots outside the pool are skipped.

    Raises:
        ValueError: no kernel serves these pages. RuntimeError: the launch failed.
    """
    _check("append_kv", k_pages)
    _core.cuda.append_kv(
        _pages(k_pages, v_pages),
        _rows(k),
        _rows(v),
        slots.data_ptr(),
        slots.shape[0],
        _stream(k_pages),
    )


def copy_pages(k_pages: Tensor, v_pages: Tensor, copies: Tensor) -> None:
    """Copies all pairs at once: destinations are distinct and none is a source.

    Pairs outside the pool are skipped.

    Raises:
        ValueError: no kernel serves these pages. RuntimeError: the launch failed.
    """
    _check("copy_pages", k_pages)
    if k_pages.shape[0] == 0:
        return
    _core.cuda.copy_pages(
        _pages(k_pages[0], v_pages[0]),
        k_pages.shape[0],
        (k_pages.stride(0), v_pages.stride(0)),
        copies.data_ptr(),
        copies.shape[0],
        _stream(k_pages),
    )


def tree_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    launch: WorkLaunch,
    options: AttentionOptions,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Writes out and lse, both contiguous [T, ...] with one row for each row of q.

    Queries of the work list without a row in q are left out. Rows without a query in the work list become (0,
    -inf) below num_merges, and are left unchanged from there on.

    The work list has tiles of at most 64 rows.

    Raises:
        ValueError: no kernel serves these pages, scale is not positive, or an address is no multiple of 16.
        RuntimeError: the launch failed.
    """
    _check("tree_attention", k_pages)
    _core.cuda.tree_attention(
        _pages(k_pages, v_pages),
        _rows(q),
        q.shape[0],
        q.shape[1],
        q.dtype is torch.bfloat16,
        _core.cuda.WorkLaunch(
            launch.work.data_ptr(),
            launch.partials.data_ptr(),
            launch.capacity,
            launch.num_items,
            launch.num_merges,
        ),
        out.data_ptr(),
        lse.data_ptr(),
        options.scale,
        options.window,
        options.soft_cap,
        0 if options.sinks is None else options.sinks.data_ptr(),
        _stream(k_pages),
    )


def _check(op: str, k_pages: Tensor) -> None:
    dtype, head_dim = k_pages.dtype, k_pages.shape[-1]
    if supports(op, dtype, head_dim):
        return
    if not _core.cuda_archs:
        raise ValueError(
            f"{op}: this build has no CUDA kernels; build with TTS_CUDA=ON, or use the backend 'triton'"
        )
    expected = "torch.float32, torch.float16 or torch.bfloat16"
    if op == "tree_attention":
        expected = "torch.float16 or torch.bfloat16 with head_dim 64 or 128"
    raise ValueError(
        f"k_pages: got {dtype} with head_dim {head_dim}, which {op} has no CUDA kernel for; expected "
        f"{expected}, or use the backend 'triton'"
    )


def _pages(k_pages: Tensor, v_pages: Tensor) -> _core.cuda.Pages:
    return _core.cuda.Pages(
        k_pages.data_ptr(),
        v_pages.data_ptr(),
        k_pages.stride()[:3],
        v_pages.stride()[:3],
        k_pages.shape,
        k_pages.element_size(),
    )


def _rows(rows: Tensor) -> _core.cuda.Rows:
    return _core.cuda.Rows(rows.data_ptr(), (rows.stride(0), rows.stride(1)))


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream
