"""Specification of what becomes of x beside quantised weights."""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = 32
_LEAST = 2.0**-100  # of the largest of a group; smaller ones count as zeros


def int8_rows(x: Tensor) -> Tensor:
    """x [T, inputs] as 8-bit integers times a float32 scale for each 32 inputs: float64 [T, inputs].

    The largest of a group becomes 127 or -127. NaN where a group has a value that is not finite.
    """
    groups = x.float().reshape(len(x), x.shape[1] // _GROUP, _GROUP)
    most = groups.abs().amax(-1, keepdim=True)
    zero = most < _LEAST
    # As one division: torch takes 127 / most for 127 times the reciprocal.
    inverse = torch.where(zero, 0.0, torch.full_like(most, 127).div(most))
    whole = torch.round(groups * inverse).double()
    scale = torch.where(zero, 0.0, most / 127).double()
    return torch.where(most.isfinite(), whole * scale, torch.nan).view(x.shape)
