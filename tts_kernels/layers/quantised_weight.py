"""Weights of a linear layer that stay quantised, in the order in which the CPU kernel reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Guard, Number, Rule, Signature, flag, instance, integer, shown
from .gguf_blocks import KINDS, GgufKind
from .packed_weight import BIAS, PANEL, padded, require_cpu
from .quant_form import X_GROUP, QuantForm
from .quant_groups import groups_of
from .quant_panels import BAND, QuantMatrix, ReadRows, pack_bands, unpack_panels, weights_of
from .quant_rounding import rounding_of

_BYTES = (torch.uint8,)
ORDER = Array("order", "inputs", (torch.int32,), optional=True)  # of the panels' inputs


def quantised_arrays(form: QuantForm) -> tuple[Array | Rule, ...]:
    """Describes panels of this form, and their bias, for operators."""
    return (
        Array("panels", f"num_panels, num_blocks, {form.block_bytes}", _BYTES),
        Array("bias", f"num_panels * {PANEL}", (torch.float32,), optional=True),
        Rule("panels", "num_panels >= 1 and num_blocks >= 1"),
    )


def blocks_of(inputs: str, form: QuantForm) -> str:
    """Returns an expression for signatures: the blocks that hold `inputs`."""
    return f"({inputs} + {form.block_inputs - 1}) // {form.block_inputs}"


def _takes(values: Mapping[str, Any]) -> Signature:
    form, gated = values["form"], values["gated"]
    columns = f"num_panels * {PANEL}" + (" // 2" if gated else "")
    return Signature(
        *quantised_arrays(form),
        Number("outputs", "outputs >= 1"),
        Number("inputs", f"inputs >= 1 and inputs % {X_GROUP} == 0"),
        ORDER,
        Rule("outputs", f"{columns} - {PANEL} < outputs <= {columns}"),
        Rule("inputs", f"num_blocks == {blocks_of('inputs', form)}"),
        *([Rule("panels", "num_panels % 2 == 0")] if gated else []),
        home="panels",
    )


def _blocks_take(kind: GgufKind, first: str, *others: Array) -> Signature:
    size = kind.size
    return Signature(
        Array(first, "outputs, row_bytes", _BYTES, packed=0),
        *others,
        Rule(first, f"outputs >= 1 and row_bytes >= 1 and row_bytes % {size} == 0"),
        home=first,
    )


_ROWS = Guard(
    "rows", ("indices",), lambda _: Signature(Array("indices", "T", (torch.int64,)), home="indices")
)
_UP = Array("up", "outputs, row_bytes", _BYTES, packed=0)


@dataclass(frozen=True)
class QuantisedWeight:
    """A quantised weight for `packed_linear`.

    Made by `from_gguf`, `from_gguf_gated`, `from_groups` or `quantise`. A weight from a file has exactly the
    value that the file represents: nothing is rounded a second time.

    Attributes:
        panels: uint8 [P, blocks, form.block_bytes]; zero weights fill the last panel and the last block.
        bias: float32 [16 P], or None.
        form: of the bits in the panels.
        outputs, inputs: of the layer; inputs are a multiple of 32.
        gated: panels of gate and up alternate, and an output is silu(gate) * up.
        order: int32 [inputs], a permutation: input i of the panels is input order[i] of the layer. None: they
            are in the layer's order. Rows of x, and dequantised weights, are always in the layer's order.
    """

    panels: Tensor
    bias: Tensor | None
    form: QuantForm
    outputs: int
    inputs: int
    gated: bool = False
    order: Tensor | None = None

    def __post_init__(self) -> None:
        instance("form", self.form, QuantForm)
        integer("outputs", self.outputs)
        integer("inputs", self.inputs)
        flag("gated", self.gated)
        self.check()
        if self.order is not None and not torch.equal(self.order.sort()[0], _all_inputs(self.inputs)):
            raise ValueError(
                f"order: got others than all inputs, expected each of 0 to {self.inputs - 1} once"
            )

    def check(self) -> None:
        """Raises TypeError or ValueError unless the tensors fit together and have their memory."""
        known = {"form": self.form, "gated": self.gated}
        args = self.panels, self.bias, self.outputs, self.inputs, self.order
        names = "panels", "bias", "outputs", "inputs", "order"
        Guard("QuantisedWeight", names, lambda values: _takes({**values, **known})).check(args)

    @cached_property
    def columns(self) -> int:
        """Outputs, including those that fill the last panel."""
        return len(self.panels) * PANEL // (2 if self.gated else 1)

    @classmethod
    def from_gguf(cls, kind: str, blocks: Tensor, bias: Tensor | None = None) -> QuantisedWeight:
        """Packs a tensor of a GGUF file.

        Args:
            kind: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, MXFP4, IQ4_NL or IQ4_XS.
            blocks: uint8 [outputs, bytes], as stored in the file.
            bias: [outputs].

        Raises:
            TypeError, ValueError: another kind, dtype or shape; rows that are not whole blocks; a scale that
                is NaN or infinite.
        """
        known = _kind(kind)
        Guard("from_gguf", ("blocks", "bias"), lambda _: _blocks_take(known, "blocks", BIAS)).check(
            (blocks, bias)
        )
        require_cpu("blocks", blocks)
        inputs = blocks.shape[1] // known.size * known.inputs
        panels = pack_bands([_of_blocks("blocks", blocks, kind)], known.form, len(blocks), inputs)
        return cls(panels, _wide(bias), known.form, len(blocks), inputs)

    @classmethod
    def from_gguf_gated(cls, kind: str, gate: Tensor, up: Tensor) -> QuantisedWeight:
        """Packs the two projections of a SwiGLU layer, uint8 [outputs, bytes] as in `from_gguf`."""
        known = _kind(kind)
        Guard("from_gguf_gated", ("gate", "up"), lambda _: _blocks_take(known, "gate", _UP)).check((gate, up))
        require_cpu("gate", gate)
        inputs = gate.shape[1] // known.size * known.inputs
        both = [_of_blocks("gate", gate, kind), _of_blocks("up", up, kind)]
        return cls(
            pack_bands(both, known.form, len(gate), inputs), None, known.form, len(gate), inputs, gated=True
        )

    @classmethod
    def from_groups(
        cls,
        numbers: Tensor,
        scales: Tensor,
        zeros: Tensor | int,
        *,
        bits: int,
        bias: Tensor | None = None,
        group_of: Tensor | None = None,
    ) -> QuantisedWeight:
        """Packs weights scale * (u - zero), whose groups of inputs share a scale and a zero point.

        GPTQ, AWQ and compressed-tensors store them so. A group has a multiple of 16 inputs, up to all of
        them.

        Args:
            numbers: u, uint8 [outputs, inputs], inputs a multiple of 32.
            scales: float16, bfloat16 or float32 [outputs, groups].
            zeros: uint8 [outputs, groups], or one for all groups: with 8 bits 128 or more, because u - zero
                must fit an int8.
            bits: of u and zeros: 4, 5, 6 or 8.
            bias: [outputs].
            group_of: int32 or int64 [inputs], each input's group (GPTQ's g_idx), all of the same size.
                Default: consecutive inputs.

        Raises:
            TypeError, ValueError: another dtype, shape or number of bits; groups that do not divide the
                inputs, or are of several sizes; an integer of more bits; a scale that is NaN or infinite.
        """
        form, read, order = groups_of(numbers, scales, zeros, bits, bias, group_of)
        outputs, inputs = numbers.shape
        panels = pack_bands([read], form, outputs, inputs)
        return cls(panels, _wide(bias), form, outputs, inputs, order=order)

    @classmethod
    def quantise(cls, weight: Tensor, bits: int, bias: Tensor | None = None) -> QuantisedWeight:
        """Rounds float weights [outputs, inputs], each group of 32 inputs separately.

        Args:
            bits: 8: to the nearest step of largest / 127, as Q8_0; 4: to one of 16 steps with a scale and a
                minimum of small squared error, as Q4_1.

        Raises TypeError or ValueError for another dtype or number of bits, inputs that are no multiple of 32,
        and weights that are NaN, infinite or too large for float16 scales.
        """
        form, read = rounding_of(weight, bits, bias)
        outputs, inputs = weight.shape
        return cls(pack_bands([read], form, outputs, inputs), _wide(bias), form, outputs, inputs)

    def dequantised(self) -> Tensor:
        """Returns the weights rounded to float32: [outputs, inputs], or [2, outputs, inputs] if gated."""
        projections = 2 if self.gated else 1
        bands = self.panels.view(-1, projections, *self.panels.shape[1:]).transpose(0, 1)
        made = torch.empty(projections, self.outputs, self.inputs, dtype=torch.float32, device="cpu")
        columns = slice(None) if self.order is None else self.order.long()
        for weights, panels in zip(made, bands, strict=True):
            for begin in range(0, len(weights), BAND):
                band = weights[begin : begin + BAND]
                part = panels[begin // PANEL : (begin + BAND) // PANEL]
                wide = weights_of(unpack_panels(part, self.form), self.form)
                band[:, columns] = wide[: len(band), : self.inputs].float()
        return made if self.gated else made[0]

    def exact(self) -> QuantisedWeight:
        """Returns the same weight, sharing memory, for products that do not round x: `QuantForm.exact`."""
        return replace(self, form=replace(self.form, exact=True))

    def rows(self, indices: Tensor) -> Tensor:
        """Returns rows of `dequantised()`, like an embedding table.

        Args:
            indices: int64 [T], from 0 to below outputs.

        Returns:
            float32 [T, inputs].

        Raises:
            TypeError, ValueError, IndexError: another dtype or shape, a gated weight, or an index out of
                range.
        """
        _ROWS.check((indices,))
        if self.gated:
            raise ValueError("rows: got a gated weight, expected one without gate")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.outputs:
            raise IndexError(f"indices: got one that is not from 0 to below {self.outputs}, the outputs")
        taken = indices.contiguous()
        rows = torch.empty(len(taken), self.inputs, dtype=torch.float32, device="cpu")
        _core.dequantise_rows(
            self.form.numbers,
            self.panels.data_ptr(),
            self.panels.shape[1],
            address_of(self.order),
            taken.data_ptr(),
            (len(taken), self.inputs),
            rows.data_ptr(),
            torch.get_num_threads(),
        )
        return rows


def address_of(order: Tensor | None) -> int:
    """Returns the address as kernels take it: 0 for none."""
    return 0 if order is None else order.data_ptr()


def _all_inputs(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device="cpu")


def _kind(name: Any) -> GgufKind:
    if not isinstance(name, str):
        raise TypeError(f"kind: got {shown(name)}, expected a str")
    if name not in KINDS:
        raise ValueError(f"kind: got {name!r}, expected one of {', '.join(KINDS)}; dequantise the tensor")
    return KINDS[name]


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else padded(bias.float())


def _of_blocks(name: str, blocks: Tensor, kind: str) -> ReadRows:
    known = KINDS[kind]

    def read(band: slice) -> QuantMatrix:
        matrix = known.read(blocks[band].reshape(-1, blocks.shape[1] // known.size, known.size))
        _require_finite(name, matrix, kind)
        return matrix

    return read


def _require_finite(name: str, matrix: QuantMatrix, kind: str) -> None:
    for part in (matrix.scales, matrix.mins, matrix.factors, matrix.min_factors):
        if part is not None and part.is_floating_point() and not part.isfinite().all():
            raise ValueError(
                f"{name}: got {kind} blocks with a scale that is NaN or infinite, expected finite ones; the "
                "data are damaged, fetch them again"
            )
