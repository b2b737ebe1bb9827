"""Weights of either kind, alone or concatenated, as the layers of a decoder take them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeAlias

from torch import Tensor

from .. import _core
from ..checks.pages import CORE_DTYPES
from .packed_weight import PANEL, PackedWeight
from .quantised_weight import QuantisedWeight, address_of

Weight: TypeAlias = PackedWeight | QuantisedWeight
"""A weight of a linear layer, as the CPU kernels read it."""
# A tuple: weights with concatenated outputs.
Weights: TypeAlias = Weight | tuple[Weight, ...]


def side_by_side(weights: Weights) -> tuple[Weight, ...]:
    """Returns the weights whose outputs are concatenated."""
    return weights if isinstance(weights, tuple) else (weights,)


def outputs_of(weights: Weights) -> int:
    """Returns the total outputs of concatenated weights."""
    return sum(weight.outputs for weight in side_by_side(weights))


def is_gated(weights: Weights) -> bool:
    """Whether the product is silu(gate) * up."""
    parts = side_by_side(weights)
    return len(parts) == 1 and parts[0].gated


def tensors_of_weights(weights: Weights) -> list[Tensor]:
    """Returns all tensors that the kernels read."""
    found: list[Tensor | None] = []
    for weight in side_by_side(weights):
        found += weight.panels, weight.bias
        if isinstance(weight, QuantisedWeight):
            found.append(weight.order)
    return [tensor for tensor in found if tensor is not None]


def require_weight(name: str, weight: Any) -> None:
    """Raises TypeError unless it is a weight."""
    if not isinstance(weight, Weight):
        raise TypeError(
            f"{name}: got {type(weight).__name__}, expected a PackedWeight or a QuantisedWeight; make it "
            "with PackedWeight.pack or QuantisedWeight.from_gguf"
        )


def require_weights(name: str, weights: Any) -> None:
    """Raises TypeError unless it is a weight or a tuple of weights."""
    if not isinstance(weights, tuple):
        require_weight(name, weights)
    elif not weights:
        raise TypeError(f"{name}: got (), expected a weight, or several in a tuple")
    else:
        for index, weight in enumerate(weights):
            require_weight(f"{name}[{index}]", weight)


def check_weight(
    name: str, weight: Weight, inputs: int, outputs: int, *, gated: bool = False, whole: bool = False
) -> None:
    """Raises TypeError or ValueError unless a weight fits. whole: its outputs must fill their panels."""
    weight.check()
    if (weight.inputs, weight.outputs, weight.gated) != (inputs, outputs, gated):
        raise ValueError(
            f"{name}: got {weight.inputs} inputs, {weight.outputs} outputs, gated: {weight.gated}, expected "
            f"{inputs}, {outputs}, {gated}"
        )
    if whole and outputs % PANEL:
        raise ValueError(f"{name}: got {outputs} outputs, expected a multiple of {PANEL}")


def check_weights(
    name: str,
    weights: Weights,
    inputs: int,
    outputs: Sequence[int],
    *,
    gated: bool = False,
    whole: bool = False,
) -> None:
    """Raises TypeError or ValueError unless weights fit.

    Args:
        outputs: of the parts, such as queries, keys and values; a weight has the outputs of one part, or of
            neighbouring ones.
    """
    parts = side_by_side(weights)
    if len(parts) == 1:
        return check_weight(name, parts[0], inputs, sum(outputs), gated=gated, whole=whole)
    found = [weight.outputs for weight in parts]
    if sum(found) != sum(outputs) or not set(accumulate(outputs)).issuperset(accumulate(found)):
        raise ValueError(
            f"{name}: got weights of {found} outputs side by side, expected {list(outputs)}, or neighbours "
            "of these together"
        )
    for index, weight in enumerate(parts):
        last = index == len(parts) - 1
        check_weight(f"{name}[{index}]", weight, inputs, weight.outputs, whole=whole or not last)


def matrix(weight: Weight) -> _core.Matrix:
    """Returns what the kernels read of a weight, which is borrowed."""
    panels = weight.panels.data_ptr(), len(weight.panels)
    bias = 0 if weight.bias is None else weight.bias.data_ptr()
    if isinstance(weight, PackedWeight):
        return _core.float_matrix(panels, CORE_DTYPES[weight.panels.dtype], bias, weight.gated)
    blocks = weight.panels.shape[1]
    return _core.quantised_matrix(
        panels, weight.form.numbers, blocks, address_of(weight.order), bias, weight.gated
    )


def matrices(weights: Weights) -> list[_core.Matrix]:
    """Returns the same for concatenated weights."""
    return [matrix(weight) for weight in side_by_side(weights)]
