"""How far a decoder may differ from the model's own forward, and the refusal beyond that."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import UnsupportedModelError

_HINT = "The model has something beside attention that looks at other tokens, or attention of its own"
_HINTS = {
    "the input of layer 0": "Its positions may not begin at 0, or its embeddings look at other tokens"
}  # by the place
# Largest rounding difference, relative to what a layer adds to its input. In float32 it was 2e-6 at most over
# the tiny models of all architectures, 2e-5 in a trained model of 30 layers, and 3e-5 where weights were a
# thousand times too large; one step of bfloat16 is 4e-3. The logits of models in bfloat16 differed by 4e-3.
_TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 0.03, torch.float16: 0.004}
# With quantised weights activations are rounded to int8: 0.6% of a product's size, several in a layer.
QUANTISED_LAYER, QUANTISED_HEAD = 0.2, 0.03

Place = tuple[str, int]  # a step's name and a position


def rounding(dtype: torch.dtype) -> float:
    """Returns the largest difference that computing in this dtype may cause."""
    return _TOLERANCE[dtype]


class Differences:
    """Compares tokens of a decoder with those of the plain forward.

    Attributes:
        worst, place, tolerance: the largest difference relative to what is allowed, its place, and what is
            allowed there.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        """name: of the model's class. dtype: of the computation."""
        self._name = name
        self._dtype = dtype
        self.worst, self.place, self.tolerance = 0.0, "nowhere", _TOLERANCE[dtype]

    def compare_layer(
        self,
        got: Tensor,
        before: Tensor,
        expected: Tensor,
        layer: int,
        places: list[Place],
        path: str,
        tolerance: float | None = None,
    ) -> None:
        """Compares a layer's outputs got and expected, [..., T, hidden].

        before: its inputs. places: of the T tokens.
        """
        added = expected - before if before.shape == expected.shape else expected
        # A sum with a large input is rounded like that input.
        scale = added.abs().add_(expected.abs(), alpha=0.002)
        self.compare(got, expected, scale, f"layer {layer}", places, path, tolerance)

    def compare(
        self,
        got: Tensor,
        expected: Tensor,
        scale: Tensor,
        what: str,
        places: list[Place],
        path: str,
        tolerance: float | None = None,
    ) -> None:
        """Raises UnsupportedModelError if a row differs too much, relative to its largest `scale`.

        got, expected, scale: [..., T, size]. tolerance: default: the dtype's rounding.
        """
        tolerance = rounding(self._dtype) if tolerance is None else tolerance
        if got.shape != expected.shape:
            raise UnsupportedModelError(
                f"{self._name}: {what} has shape {list(got.shape)} in the {path} path and "
                f"{list(expected.shape)} in the model's own forward"
            )
        unit = scale.abs().amax(-1).float().clamp(min=1e-30)
        rows = ((got.float() - expected.float()).abs().amax(-1) / unit).view(-1, len(places)).amax(0)
        largest, row = (part.item() for part in rows.max(0))
        if not largest <= self.worst / self.tolerance * tolerance:
            self.worst, self.tolerance = largest, tolerance
            self.place = f"{what}, {places[int(row)][0]}, {path} path"
        if not largest <= tolerance:
            self._refuse(rows, tolerance, bool(expected.isfinite().all()), what, places, path)

    def _refuse(
        self, rows: Tensor, tolerance: float, finite: bool, what: str, places: list[Place], path: str
    ) -> None:
        """Names the worst row of the first step that differs; later differences may only follow from it."""
        differences = rows.nan_to_num(nan=math.inf).tolist()
        if not finite:
            raise UnsupportedModelError(
                f"{self._name}: its own forward has NaN or inf in {what}: look at its weights"
            )
        first = next(places[row][0] for row, value in enumerate(differences) if value > tolerance)
        largest, position = max(
            (value, -position)
            for value, (step, position) in zip(differences, places, strict=True)
            if step == first
        )
        raise UnsupportedModelError(
            f"{self._name} does not agree with its own forward: {what}, at position {-position} in the step "
            f"'{first}' of the {path} path, differs by {largest:.2g} of its size, where rounding is "
            f"below {tolerance:g}. {_HINTS.get(what, _HINT)}, which is not served: use the model's own "
            "generate, or pass check=False to decode with such differences"
        )
