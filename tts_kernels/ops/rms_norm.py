"""Root-mean-square normalisation of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.ops._common import check_devices, register


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x^2 + eps) * weight, row by row (Zhang and Sennrich, arXiv 1910.07467); on the CPU.

    Args:
        x: float32 [T, n], contiguous channels. weight: float32 [n].
        eps: positive.

    Returns:
        float32 [T, n]. A row's bits depend on that row alone.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit.
    """
    check_devices(x=x, weight=weight)
    out: Tensor = torch.ops.tts_kernels.rms_norm.default(x, weight, eps)
    return out


def _rms_norm_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise TypeError(f"x, weight: got {x.dtype} and {weight.dtype}, expected torch.float32")
    if x.dim() != 2 or weight.shape != x.shape[1:] or not x.shape[1]:
        raise ValueError(
            f"x, weight: got shapes {list(x.shape)} and {list(weight.shape)}, expected [rows, n] and [n]"
        )
    if (x.shape[1] > 1 and x.stride(1) != 1) or not weight.is_contiguous():
        raise ValueError(
            f"x, weight: got strides {x.stride()} and {weight.stride()}, expected contiguous channels"
        )
    if not eps > 0:
        raise ValueError(f"eps: got {eps}, expected a positive number")
    out = _rms_norm_fake(x, weight, eps)
    rows = _core.TokenRows(x.data_ptr(), (x.stride(0), 0), 4)
    threads = torch.get_num_threads()
    _core.rms_norm(rows, weight.data_ptr(), (x.shape[0], x.shape[1]), eps, out.data_ptr(), threads)
    return out


def _rms_norm_fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


register(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    cpu=_rms_norm_cpu,
    fake=_rms_norm_fake,
)
