"""Rounds float weights to 8 bits in the form of Q8_0, and to 4 bits in the form of Q4_1."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import Array, Guard, Rule, Signature, integer
from .packed_weight import BIAS, FLOAT_DTYPES, require_cpu
from .quant_form import X_GROUP, QuantForm
from .quant_panels import QuantMatrix, ReadRows

_GROUP = 32
_AT_ONCE = 1 << 16  # weights, which stay in the L2 cache
_SHARES = (1.0, 0.9)  # shares of a group's range that 4 bits may span: few weights lie at its ends
_FORMS = {
    8: QuantForm(8, _GROUP, "float16", offset=128),
    4: QuantForm(4, _GROUP, "float16", has_min=True),
}
_GUARD = Guard(
    "quantise",
    ("weight", "bias"),
    lambda _: Signature(
        Array("weight", "outputs, inputs", (*FLOAT_DTYPES, torch.float16), packed=0),
        BIAS,
        Rule("weight", f"outputs >= 1 and inputs >= 1 and inputs % {X_GROUP} == 0"),
        home="weight",
    ),
)


def rounding_of(weight: Tensor, bits: int, bias: Tensor | None) -> tuple[QuantForm, ReadRows]:
    """Returns the form and a function that rounds rows; see `QuantisedWeight.quantise`."""
    if integer("bits", bits) not in _FORMS:
        raise ValueError(f"bits: got {bits}, expected 4 or 8")
    _GUARD.check((weight, bias))
    require_cpu("weight", weight)

    def read(rows: slice) -> QuantMatrix:
        parts = torch.split(weight[rows], max(_AT_ONCE // weight.shape[1], 1))
        numbers, *scales = zip(*(_rounded(part, bits) for part in parts), strict=True)
        matrix = QuantMatrix(torch.cat(numbers), *(torch.cat(part) for part in scales))
        for part in matrix[1:]:
            if part is not None and not part.isfinite().all():
                raise ValueError(
                    "weight: got NaN, infinity or more than scales in float16 reach, expected finite numbers"
                )
        return matrix

    return _FORMS[bits], read


def _rounded(weight: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Returns u, scales and, for 4 bits, minima."""
    groups = weight.float().reshape(len(weight), -1, _GROUP)
    u, *scales = _eight_bits(groups) if bits == 8 else _four_bits(groups)
    return u.to(torch.uint8).flatten(1), *scales


def _eight_bits(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Scales each group of [outputs, groups, 32] so that its largest value becomes 127 or -127."""
    scale = (weights.abs().amax(-1) / 127).half()
    return _steps(weights, scale).round_().clamp_(-127, 127) + 128, scale


def _four_bits(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best of a few scales and minima by squared error, for groups of [outputs, groups, 32]."""
    first, *others = _candidates(weights)
    u, scale, least, error = _fitted(weights, *first)
    for other in others:
        found = _fitted(weights, *other)
        better = found[3] < error
        u = torch.where(better[..., None], found[0], u)
        scale, least, error = (
            torch.where(better, new, old) for new, old in zip(found[1:], (scale, least, error), strict=True)
        )
    return u, scale, least


def _candidates(weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields scales and minima: a group's full range, and least-squares fits to the u of shares of it."""
    low, high = weights.amin(-1), weights.amax(-1)
    yield (high - low) / 15, low
    mean = weights.mean(-1)
    for share in _SHARES:
        u = _levels(weights, (high - low) * (share / 15), low + (high - low) * ((1 - share) / 2))
        middle = u.mean(-1)
        apart = u - middle[..., None]
        scale = (apart * weights).sum(-1) / apart.square().sum(-1).clamp_(min=1e-9)
        yield scale, mean - scale * middle


def _fitted(weights: Tensor, scale: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns u, scale and minimum rounded to float16, and the squared error."""
    scale, least = scale.half(), least.half()
    u = _levels(weights, scale, least)
    made = u * scale.float()[..., None] + least.float()[..., None]
    return u, scale, least, (made - weights).square_().sum(-1)


def _levels(weights: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    """Returns the nearest of 0 to 15 for each weight."""
    return _steps(weights - least.float()[..., None], scale).round_().clamp_(0, 15)


def _steps(weights: Tensor, scale: Tensor) -> Tensor:
    """Returns weights / scale; the weights unchanged where the scale is 0."""
    wide = scale.float()[..., None]
    return weights / wide.masked_fill(wide == 0, 1.0)
