"""Converts quantised matrices between plain tensors and the panels that the kernel reads.

A panel is 16 outputs; its blocks are consecutive, 64 inputs each, or 256 with two-level scales. A block holds
factors, scales, minima or zero points, then planes of bits (csrc/cpu/kernels/quantised_linear_kernels.h).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .packed_weight import PANEL
from .quant_form import QuantForm

BAND = 64 * PANEL  # outputs packed at once: little memory besides the weight's own
_PLANE = 64  # inputs whose bits are stored together: 16 words of 4


class QuantMatrix(NamedTuple):
    """Rows of a quantised matrix.

    Attributes:
        numbers: uint8 [outputs, inputs]: u of `QuantForm`, or the index into its table.
        scales, mins: [outputs, inputs / group] of the form's scale_dtype.
        factors, min_factors: float32 [outputs, inputs / 256], of scales and minima with two levels.
        zeros: int8 [outputs, inputs / group].
    """

    numbers: Tensor
    scales: Tensor
    mins: Tensor | None = None
    factors: Tensor | None = None
    min_factors: Tensor | None = None
    zeros: Tensor | None = None


ReadRows = Callable[[slice], QuantMatrix]  # some outputs of a matrix


def weights_of(matrix: QuantMatrix, form: QuantForm) -> Tensor:
    """float64 [outputs, inputs], exact."""
    u = matrix.numbers.double()
    if form.table:
        u = torch.tensor(form.table, dtype=torch.float64, device="cpu")[matrix.numbers.long()]
    u -= form.offset
    if matrix.zeros is not None:
        u -= matrix.zeros.repeat_interleave(form.group, 1)
    weights = u * _numbers_of(matrix.scales, matrix.factors, form)
    if matrix.mins is not None:
        weights += _numbers_of(matrix.mins, matrix.min_factors, form)
    return weights


def _numbers_of(scales: Tensor, factors: Tensor | None, form: QuantForm) -> Tensor:
    wide = scales.double().repeat_interleave(form.group, 1)
    return wide if factors is None else wide * factors.double().repeat_interleave(256, 1)


def pack_bands(projections: Sequence[ReadRows], form: QuantForm, outputs: int, inputs: int) -> Tensor:
    """Returns panels that alternate between the projections, each read by bands of its outputs."""
    places, *block = form.panels_shape(outputs, inputs)
    panels = torch.empty((places, len(projections), *block), dtype=torch.uint8, device="cpu")
    for index, read in enumerate(projections):
        for begin in range(0, outputs, BAND):
            part = panels[begin // PANEL : (begin + BAND) // PANEL, index]
            part.copy_(_pack_panels(read(slice(begin, begin + BAND)), form))
    return panels.flatten(0, 1)


def _pack_panels(matrix: QuantMatrix, form: QuantForm) -> Tensor:
    """Returns uint8 [P, blocks, form.block_bytes]. Zero weights fill the last panel and the last block."""
    outputs, inputs = matrix.numbers.shape
    panels, blocks = -(-outputs // PANEL), -(-inputs // form.block_inputs)
    rows, columns = panels * PANEL - outputs, blocks * form.block_inputs - inputs

    def lanes(x: Tensor, each: int) -> Tensor:
        """Returns [outputs, n] as bytes [P, blocks, n / blocks * 16 * itemsize], 16 outputs interleaved."""
        missing = columns // form.group if each > 1 else 0
        padded = torch.nn.functional.pad(x, (0, missing, 0, rows))
        beside = padded.reshape(panels, PANEL, blocks, each).permute(0, 2, 3, 1).contiguous()
        return beside.view(torch.uint8).flatten(2)

    each = form.block_inputs // form.group
    parts = [lanes(x, 1) for x in (matrix.factors, matrix.min_factors) if x is not None]
    parts += [lanes(x, each) for x in (matrix.scales, matrix.mins, matrix.zeros) if x is not None]
    numbers = torch.nn.functional.pad(matrix.numbers, (0, columns, 0, rows))
    words = numbers.reshape(panels, PANEL, -1, 16, 4).permute(0, 2, 3, 1, 4)  # [P, planes, 16 words, 16, 4]
    return torch.cat([*parts, _planes(words, form.bits).view(panels, blocks, -1)], 2)


def _planes(words: Tensor, bits: int) -> Tensor:
    """[P, planes, bytes]."""
    if bits == 8:
        return words.flatten(2)
    planes = [((words[:, :, :8] & 15) | (words[:, :, 8:] << 4)).flatten(2)]
    if bits > 4:
        each = 8 // (bits - 4)  # words that share a byte
        places = _places(each, bits - 4)
        high = (words >> 4).reshape(*words.shape[:2], -1, each, PANEL, 4) << places
        planes.append(high.sum(3, dtype=torch.uint8).flatten(2))
    return torch.cat(planes, 2)


def _places(each: int, bits: int) -> Tensor:
    """Returns where each word's bits lie in a byte shared by `each` words: [each, 1, 1]."""
    return torch.arange(each, dtype=torch.uint8, device="cpu").view(each, 1, 1) * bits


def unpack_panels(panels: Tensor, form: QuantForm) -> QuantMatrix:
    """Returns the matrix that `pack_bands` packed, including padding."""
    at, each = 0, form.block_inputs // form.group

    def lanes(dtype: torch.dtype, each: int) -> Tensor:
        nonlocal at
        size = each * PANEL * dtype.itemsize
        part = panels[:, :, at : at + size].contiguous().view(dtype)
        at += size
        return part.view(*panels.shape[:2], each, PANEL).permute(0, 3, 1, 2).reshape(len(panels) * PANEL, -1)

    two_level, kinds = form.scales == "two-level", 1 + form.has_min
    factors = [lanes(torch.float32, 1) for _ in range(kinds)] if two_level else [None] * kinds
    scales = [lanes(form.scale_dtype, each) for _ in range(kinds)]
    zeros = lanes(torch.int8, each) if form.has_zeros else None
    words = _words(panels[:, :, at:].reshape(len(panels), -1, _PLANE * PANEL * form.bits // 8), form.bits)
    numbers = words.permute(0, 3, 1, 2, 4).reshape(len(panels) * PANEL, -1)
    mins = (scales[1], factors[1]) if form.has_min else (None, None)
    return QuantMatrix(numbers, scales[0], mins[0], factors[0], mins[1], zeros)


def _words(planes: Tensor, bits: int) -> Tensor:
    """Converts [P, planes, bytes] to [P, planes, 16 words, 16, 4]."""
    shape = planes.shape[:2]
    if bits == 8:
        return planes.view(*shape, 16, PANEL, 4)
    low = planes[:, :, : 8 * PANEL * 4].reshape(*shape, 8, PANEL, 4)
    words = torch.cat([low & 15, low >> 4], 2)
    if bits > 4:
        each = 8 // (bits - 4)
        high = planes[:, :, 8 * PANEL * 4 :].reshape(*shape, -1, 1, PANEL, 4)
        places = _places(each, bits - 4)
        words |= ((high >> places & (1 << bits - 4) - 1) << 4).flatten(2, 3)
    return words
