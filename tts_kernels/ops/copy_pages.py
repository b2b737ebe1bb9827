"""Copying whole pages: the tails that a fork's first write must not share."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.ops._common import check_cpu, check_int32, kv_view, register


def copy_pages(k_pages: Tensor, v_pages: Tensor, copies: Tensor) -> None:
    """Copies pages in every layer of a pool, one (source, destination) pair after the other.

    Args:
        k_pages, v_pages: all layers of a `KVPool` (leading layer dimension), changed in place.
        copies: int32 [C, 2] physical (source, destination) pages.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit, or a page is outside the pool.
            Nothing has been written.
    """
    check_cpu(k_pages=k_pages, v_pages=v_pages, copies=copies)
    torch.ops.tts_kernels.copy_pages.default(k_pages, v_pages, copies)


def _copy_pages_cpu(k_pages: Tensor, v_pages: Tensor, copies: Tensor) -> None:
    kv = kv_view(k_pages, v_pages, layers=1)
    check_int32("copies", copies, 2)
    _core.copy_pages(
        kv,
        k_pages.shape[0],
        (k_pages.stride(0), v_pages.stride(0)),
        copies.data_ptr(),
        copies.shape[0],
        torch.get_num_threads(),
    )


def _copy_pages_fake(k_pages: Tensor, v_pages: Tensor, copies: Tensor) -> None:
    return None


register(
    "copy_pages(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor copies) -> ()",
    cpu=_copy_pages_cpu,
    fake=_copy_pages_fake,
)
