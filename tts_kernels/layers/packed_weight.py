"""Weights of a linear layer in the order in which the CPU kernel reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checks import Array, Guard, Number, Rule, Signature, flag, integer

PANEL = 16  # outputs of a panel
FLOAT_DTYPES = (torch.float32, torch.bfloat16)
_LINE = 64  # bytes of the vectors that panels are read in
_BAND_BYTES = 1 << 20  # bytes of rows copied at a time


def is_bfloat16(panels: Any) -> bool:
    return isinstance(panels, Tensor) and panels.dtype == torch.bfloat16


def weight_arrays(*, pairs: bool) -> tuple[Array | Rule, ...]:
    """Describes panels of bfloat16 pairs or of float32, and their bias, for operators."""
    inputs = "half_inputs" if pairs else "inputs"
    return (
        Array("panels", f"num_panels, {inputs}, {PANEL}" + (", 2" if pairs else ""), FLOAT_DTYPES),
        Array("bias", f"num_panels * {PANEL}", (torch.float32,), optional=True),
        Rule("panels", f"num_panels >= 1 and {inputs} >= 1"),
    )


def _takes(values: Mapping[str, Any]) -> Signature:
    gated = values["gated"]
    columns = f"num_panels * {PANEL}" + (" // 2" if gated else "")
    return Signature(
        *weight_arrays(pairs=is_bfloat16(values["panels"])),
        Number("outputs", "outputs >= 1"),
        Rule("outputs", f"{columns} - {PANEL} < outputs <= {columns}"),
        *([Rule("panels", "num_panels % 2 == 0")] if gated else []),
        home="panels",
    )


_GUARD = Guard("PackedWeight", ("panels", "bias", "outputs", "gated"), _takes)


def _weights_take(values: Mapping[str, Any], first: str, *others: Array) -> Signature:
    inputs = "inputs >= 1 and inputs % 2 == 0" if is_bfloat16(values[first]) else "inputs >= 1"
    return Signature(
        Array(first, "outputs, inputs", FLOAT_DTYPES, packed=0),
        *others,
        Rule(first, f"outputs >= 1 and {inputs}"),
        home=first,
    )


BIAS = Array("bias", "outputs", (*FLOAT_DTYPES, torch.float16, torch.float64), packed=0, optional=True)
_UP = Array("up", "outputs, inputs", FLOAT_DTYPES, like="gate", packed=0)
_PACK = Guard("PackedWeight.pack", ("weight", "bias"), lambda v: _weights_take(v, "weight", BIAS))
_ROWS = Guard(
    "rows", ("indices",), lambda _: Signature(Array("indices", "T", (torch.int64,)), home="indices")
)
_PACK_GATED = Guard("PackedWeight.pack_gated", ("gate", "up"), lambda v: _weights_take(v, "gate", _UP))


@dataclass(frozen=True)
class PackedWeight:
    """A weight for `packed_linear`; made by `pack` or `pack_gated`.

    Attributes:
        panels: float32 [P, inputs, 16] or bfloat16 [P, inputs / 2, 16, 2]; zeros fill the last panel.
        bias: float32 [16 P], or None.
        outputs: of the layer.
        gated: panels of gate and up alternate, and an output is silu(gate) * up.
    """

    panels: Tensor
    bias: Tensor | None
    outputs: int
    gated: bool = False

    def __post_init__(self) -> None:
        integer("outputs", self.outputs)
        flag("gated", self.gated)
        self.check()

    def check(self) -> None:
        """Raises TypeError or ValueError unless the tensors fit together and have their memory."""
        _GUARD.check((self.panels, self.bias, self.outputs, self.gated))

    @cached_property
    def inputs(self) -> int:
        return self.panels.shape[1] * (2 if self.panels.dtype == torch.bfloat16 else 1)

    @cached_property
    def columns(self) -> int:
        """Outputs, including those that fill the last panel."""
        return len(self.panels) * PANEL // (2 if self.gated else 1)

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
        """Copies a weight [outputs, inputs] of float32 or bfloat16, and a bias [outputs].

        Raises:
            TypeError, ValueError: another dtype or shape; an odd number of inputs in bfloat16.
        """
        _PACK.check((weight, bias))
        require_cpu("weight", weight)
        return cls(_panels(weight), None if bias is None else padded(bias.float()), len(weight))

    @classmethod
    def pack_gated(cls, gate: Tensor, up: Tensor) -> PackedWeight:
        """Copies the weights [outputs, inputs] of a SwiGLU layer's two projections.

        SwiGLU: Shazeer, arXiv 2002.05202.
        """
        _PACK_GATED.check((gate, up))
        require_cpu("gate", gate)
        panels = _panel_room(len(gate), 2, gate)
        for projection, weight in enumerate((gate, up)):
            _fill_panels(panels[:, projection], weight)
        return cls(panels.flatten(0, 1), None, len(gate), gated=True)

    @classmethod
    def pack_in_place(cls, weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
        """Like `pack`, with panels in the memory of the weight, whose numbers are then reordered.

        A panel is as large as its 16 rows. A weight whose number of outputs is no multiple of 16, or whose
        address is no multiple of 64, is copied.
        """
        _PACK.check((weight, bias))
        require_cpu("weight", weight)
        if len(weight) % PANEL or weight.data_ptr() % _LINE or not weight.is_contiguous():
            return cls.pack(weight, bias)
        panels = weight.view(_panels_shape(weight))
        band = max(1, _BAND_BYTES // (weight.nbytes // len(panels)))
        for begin in range(0, len(panels), band):
            rows = weight[PANEL * begin : PANEL * (begin + band)].clone()
            _fill_panels(panels[begin : begin + band], rows)
        return cls(panels, None if bias is None else padded(bias.float()), len(weight))

    def with_bias(self, bias: Tensor | None) -> PackedWeight:
        """Returns the same panels with a bias [outputs]."""
        return replace(self, bias=None if bias is None else padded(bias.float()))

    def widened(self) -> PackedWeight:
        """Returns the same weight with panels of float32; itself if it has them."""
        if self.panels.dtype == torch.float32:
            return self
        wide = self.panels.new_empty((len(self.panels), self.inputs, PANEL), dtype=torch.float32)
        wide.view(len(wide), -1, 2, PANEL).copy_(self.panels.transpose(2, 3))
        return replace(self, panels=wide)

    def unpacked(self) -> Tensor:
        """Returns a copy of the weight, [outputs, inputs] in the dtype of the panels.

        Raises ValueError for a gated weight.
        """
        self._refuse_gated("unpacked")
        return _rows_of(self.panels)[: self.outputs]

    def rows(self, indices: Tensor) -> Tensor:
        """Returns rows of `unpacked()`, like an embedding table: indices int64 [T] -> [T, inputs].

        Raises:
            TypeError, ValueError, IndexError: another dtype or shape, a gated weight, or an index out of
                range.
        """
        _ROWS.check((indices,))
        self._refuse_gated("rows")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.outputs:
            raise IndexError(f"indices: got one that is not from 0 to below {self.outputs}, the outputs")
        return self.panels[indices // PANEL, :, indices % PANEL].flatten(1)

    def _refuse_gated(self, what: str) -> None:
        if self.gated:
            raise ValueError(f"{what}: got a gated weight, expected one without gate")


def _panels(weight: Tensor) -> Tensor:
    panels = _panel_room(len(weight), 1, weight)[:, 0]
    _fill_panels(panels, weight)
    return panels


def _panel_room(outputs: int, projections: int, weight: Tensor) -> Tensor:
    """Allocates float32 [P, projections, inputs, 16] or bfloat16 [P, projections, inputs / 2, 16, 2]."""
    return weight.new_empty((-(-outputs // PANEL), projections, *_lanes(weight)))


def _panels_shape(weight: Tensor) -> tuple[int, ...]:
    return len(weight) // PANEL, *_lanes(weight)


def _lanes(weight: Tensor) -> tuple[int, ...]:
    """Returns the shape of a panel."""
    inputs = weight.shape[1]
    return (inputs // 2, PANEL, 2) if weight.dtype == torch.bfloat16 else (inputs, PANEL)


def _rows_of(panels: Tensor) -> Tensor:
    """Returns all rows of panels, [16 P, inputs]: the inverse of `_fill_panels`."""
    if panels.dtype == torch.bfloat16:
        rows = panels.new_empty(len(panels), PANEL, 2 * panels.shape[1])
        rows.view(torch.int32).copy_(panels.view(torch.int32)[..., 0].transpose(1, 2))
        return rows.flatten(0, 1)
    return panels.transpose(1, 2).flatten(0, 1)


def _fill_panels(panels: Tensor, weight: Tensor) -> None:
    """Fills panels. Moving pairs of bfloat16 as one 32-bit number takes a seventh of the time."""
    rows = padded(weight)
    if weight.dtype == torch.bfloat16:
        rows = rows if rows.storage_offset() % 2 == 0 else rows.clone()
        panels, rows = panels.view(torch.int32)[..., 0], rows.view(torch.int32)
    panels.copy_(rows.view(len(panels), PANEL, -1).transpose(1, 2))


def padded(rows: Tensor) -> Tensor:
    """Pads rows with zeros to whole panels."""
    short = -len(rows) % PANEL
    return torch.cat([rows, rows.new_zeros(short, *rows.shape[1:])]) if short else rows.contiguous()


def require_cpu(name: str, weight: Tensor) -> None:
    if not weight.is_cpu:
        raise ValueError(f"{name}: got a tensor on {weight.device}, expected the CPU")
