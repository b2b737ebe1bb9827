"""Root-mean-square normalisation of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from tts_kernels import _core
from tts_kernels.checks import Array, Number, Rule, Signature, real
from tts_kernels.ops._operator import register
from tts_kernels.ops._pages import CORE_DTYPES, FLOAT32

_TAKES = Signature(
    Array("x", "T, n", FLOAT32, packed=1),
    Array("weight", "n", FLOAT32),
    Number("eps", "2**-126 <= eps <= 2**127"),
    Rule("x", "n >= 1"),
    home="x",
)


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
    out: Tensor = _rms_norm(x, weight, real("eps", eps))
    return out


def _rms_norm_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = _rms_norm_fake(x, weight, eps)
    rows = _core.TokenRows(x.data_ptr(), (x.stride(0), 0), CORE_DTYPES[x.dtype])
    threads = torch.get_num_threads()
    _core.rms_norm(rows, weight.data_ptr(), (x.shape[0], x.shape[1]), eps, out.data_ptr(), threads)
    return out


def _rms_norm_fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


_rms_norm = register(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    lambda _: _TAKES,
    cpu=_rms_norm_cpu,
    fake=_rms_norm_fake,
)
