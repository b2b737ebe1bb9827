"""Root-mean-square normalisation of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Number, Result, Rule, Signature, real
from ..checks.pages import FLOAT32
from ..ops.operator import register

_TAKES = Signature(
    Array("x", "T, n", FLOAT32, packed=1),
    Array("weight", "n", FLOAT32),
    Number("eps", "2**-126 <= eps <= 2**127", float),
    Rule("x", "n >= 1"),
    home="x",
    results=(Result("out", "T, n", torch.float32),),
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Computes x / sqrt(mean of x^2 + eps) * weight per row, on the CPU.

    Zhang and Sennrich, arXiv 1910.07467.

    Args:
        x: float32 [T, n], contiguous channels.
        weight: float32 [n].
        eps: positive.

    Returns:
        float32 [T, n]. A row's bits depend on that row alone.

    Raises:
        TypeError, ValueError: a dtype, device, shape or stride does not fit.
    """
    out: Tensor = _rms_norm(x, weight, real("eps", eps))
    return out


def _norm_rows(a: Any) -> None:
    rows = _core.TokenRows(a.x, heads=False)
    threads = torch.get_num_threads()
    _core.rms_norm(rows, a.weight.data_ptr(), a.x.shape, a.eps, a.out.data_ptr(), threads)


_rms_norm = register("rms_norm", "x weight eps", lambda _: _TAKES, _TAKES, cpu=_norm_rows)
