"""Specification of packed_linear."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear, silu


def packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, up: Tensor | None = None
) -> Tensor:
    """x [T, inputs] and the weight [outputs, inputs] as it was packed; with `up` the weight is the gate.
    float64 [T, outputs]."""
    out = linear(x.double(), weight.double(), None if bias is None else bias.double())
    return out if up is None else silu(out) * linear(x.double(), up.double())
