"""Products with packed weights by torch, in float32: the reference for kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tts_kernels import Weight

_BAND = 1 << 20  # number of weights in float32 at a time


def product_in_bands(x: Tensor, weight: Weight) -> Tensor:
    """Returns x [T, inputs] times a quantised or float weight, plus its bias: float32 [T, outputs].

    It computes one band of outputs at a time.
    """
    made = torch.empty(len(x), weight.outputs)
    wide = x.float()
    for rows in torch.split(torch.arange(weight.outputs), max(1, _BAND // weight.inputs)):
        bias = None if weight.bias is None else weight.bias[rows]
        made[:, rows[0] : rows[-1] + 1] = nn.functional.linear(wide, weight.rows(rows).float(), bias)
    return made
