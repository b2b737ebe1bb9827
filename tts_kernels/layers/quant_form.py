"""The format of packed quantised weights: the value of a weight, and the place of its bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from .. import _core
from ..checks import choice, flag, integer, shown
from .packed_weight import PANEL

X_GROUP = 32  # inputs of a row of x that share a scale

# csrc/cpu/kernels/quantised_linear_kernels.h: QuantScales
SCALES = ("float16", "bfloat16", "two-level", "float32")
_SHIFTS = (0, 1, 2, 4, 5, 6)  # has_min + 2 has_zeros + 4 exact
_SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.int8, torch.float32)


@dataclass(frozen=True)
class QuantForm:
    """A format of packed weights.

    A weight is scale * (u - offset), scale * u + minimum, or scale * (u - offset - zero point).

    Attributes:
        bits: 4, 5, 6 or 8, of the number u.
        group: inputs that share a scale, and a minimum or zero point, 16 or 32.
        scales: "float16", "bfloat16" or "float32", one for each group; "two-level", an int8 for each group
            times a float32 for all groups of 256 inputs. Minima are of the same kind.
        has_min: whether there are minima.
        offset: subtracted from u; 0 with minima.
        table: 16 entries indexed by 4 bits: u is one of them. Empty: u is the number itself.
        has_zeros: whether there are zero points, an int8 for each group; not together with minima or two
            levels.
        exact: `packed_linear` does not round x, and dequantises weights on the fly. Slow: for comparison.

    Raises:
        TypeError, ValueError: no kernel supports such a form.
    """

    bits: int
    group: int
    scales: str
    has_min: bool = False
    offset: int = 0
    table: tuple[int, ...] = ()
    has_zeros: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        for name in ("bits", "group", "offset"):
            integer(name, getattr(self, name), 0, 255)
        choice("scales", self.scales, SCALES)
        flag("has_min", self.has_min)
        flag("has_zeros", self.has_zeros)
        flag("exact", self.exact)
        if not isinstance(self.table, tuple) or len(self.table) not in (0, 16):
            raise ValueError(f"table: got {shown(self.table)}, expected a tuple of 16 integers, or ()")
        for entry in self.table:
            integer("table", entry, 0, 255)
        _core.quant_layout(self.numbers)

    @classmethod
    def of(cls, numbers: Sequence[int]) -> QuantForm:
        """Returns the form with these `numbers`."""
        known = len(numbers) in (5, 21) and 0 <= numbers[2] < len(SCALES) and numbers[3] in _SHIFTS
        if not known:
            raise ValueError(
                f"form: got {shown(list(numbers))}, expected [bits, group, scales, has_min + 2 has_zeros "
                "+ 4 exact, offset], and 16 entries of a table where there is one, as QuantForm.numbers has "
                "them"
            )
        bits, group, scales, shift, offset, *table = numbers
        return cls(bits, group, SCALES[scales], shift & 1 > 0, offset, tuple(table), shift & 2 > 0, shift > 3)

    @cached_property
    def numbers(self) -> list[int]:
        """Returns the form as operators take it."""
        kind = SCALES.index(self.scales)
        shift = self.has_min + 2 * self.has_zeros + 4 * self.exact
        return [self.bits, self.group, kind, shift, self.offset, *self.table]

    @cached_property
    def block_inputs(self) -> int:
        """Inputs of a block; a panel has as many blocks as it needs: 64, or 256 for two levels."""
        return _core.quant_layout(self.numbers)[0]

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of a block: everything that belongs to the weights of its 16 outputs."""
        return _core.quant_layout(self.numbers)[1]

    def panels_shape(self, outputs: int, inputs: int) -> tuple[int, int, int]:
        """Returns [P, blocks, block_bytes] of a weight."""
        return -(-outputs // PANEL), -(-inputs // self.block_inputs), self.block_bytes

    @property
    def scale_dtype(self) -> torch.dtype:
        """Dtype of the groups' scales and minima."""
        return _SCALE_DTYPES[SCALES.index(self.scales)]
