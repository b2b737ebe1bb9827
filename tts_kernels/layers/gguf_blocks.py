"""Reads blocks of GGUF tensors as quantised matrices: the same weights, without a second rounding.

The kinds and their layouts are those of ggml (ggml-common.h, ggml-quants.c of llama.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .quant_form import QuantForm
from .quant_panels import QuantMatrix


class GgufKind(NamedTuple):
    """A kind of block: `inputs` weights in `size` bytes, and a reader of uint8 [outputs, blocks, size]."""

    inputs: int
    size: int
    form: QuantForm
    read: Callable[[Tensor], QuantMatrix]


def _half(blocks: Tensor, at: int) -> Tensor:
    """Returns the float16 at this byte of each block: [outputs, blocks]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _fields(packed: Tensor, run: int, bits: int) -> Tensor:
    """Splits runs of `run` bytes into numbers of `bits` bits, lowest first, run by run."""
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)[:, None]
    runs = packed.reshape(*packed.shape[:-1], -1, 1, run)
    return (runs >> places & (1 << bits) - 1).flatten(-3)


def _matrix(
    numbers: Tensor,
    scales: Tensor,
    mins: Tensor | None = None,
    factors: Tensor | None = None,
    min_factors: Tensor | None = None,
) -> QuantMatrix:
    """Makes a matrix from parts with a dimension for the blocks, or for numbers of one each."""
    wide = None if factors is None else factors.float()
    least = None if min_factors is None else min_factors.float()
    return QuantMatrix(numbers.flatten(1), scales.flatten(1), _flat(mins), wide, least)


def _flat(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.flatten(1)


def _q4_0(b: Tensor) -> QuantMatrix:
    return _matrix(_fields(b[..., 2:], 16, 4), _half(b, 0))


def _q4_1(b: Tensor) -> QuantMatrix:
    return _matrix(_fields(b[..., 4:], 16, 4), _half(b, 0), _half(b, 2))


def _fifth(b: Tensor, at: int) -> Tensor:
    """Returns 32 numbers of 5 bits: four bytes hold the high bits, 16 bytes two low halves each."""
    return _fields(b[..., at + 4 :], 16, 4) | _fields(b[..., at : at + 4], 1, 1) << 4


def _q5_0(b: Tensor) -> QuantMatrix:
    return _matrix(_fifth(b, 2), _half(b, 0))


def _q5_1(b: Tensor) -> QuantMatrix:
    return _matrix(_fifth(b, 4), _half(b, 0), _half(b, 2))


def _q8_0(b: Tensor) -> QuantMatrix:
    return _matrix(b[..., 2:] ^ 0x80, _half(b, 0))


def _mxfp4(b: Tensor) -> QuantMatrix:
    """Reads MXFP4. Scales are 2^(e - 128), exact in bfloat16; e = 255 is NaN. Twice an e2m1 is an integer."""
    e = b[..., 0].int()
    bits = torch.where(e < 2, 0x20 << e.clamp(max=1), (e - 1) << 7).masked_fill(e == 255, 0x7FC0)
    return _matrix(_fields(b[..., 1:], 16, 4), bits.to(torch.int16).view(torch.bfloat16))


def _six_bits(b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns 8 scales and 8 minima of 6 bits from 12 bytes, as in Q4_K and Q5_K."""
    first, second, third = b.reshape(*b.shape[:-1], 3, 4).unbind(-2)
    scales = torch.cat([first & 63, third & 15 | first >> 2 & 48], -1)
    return scales.to(torch.int8), torch.cat([second & 63, third >> 4 | second >> 2 & 48], -1).to(torch.int8)


def _q4_k(b: Tensor) -> QuantMatrix:
    return _matrix(_fields(b[..., 16:], 32, 4), *_six_bits(b[..., 4:16]), _half(b, 0), -_half(b, 2))


def _q5_k(b: Tensor) -> QuantMatrix:
    numbers = _fields(b[..., 48:], 32, 4) | _fields(b[..., 16:48], 32, 1) << 4
    return _matrix(numbers, *_six_bits(b[..., 4:16]), _half(b, 0), -_half(b, 2))


def _q6_k(b: Tensor) -> QuantMatrix:
    numbers = _fields(b[..., :128], 64, 4) | _fields(b[..., 128:192], 32, 2) << 4
    return _matrix(numbers, b[..., 192:208].view(torch.int8), factors=_half(b, 208))


def _q2_k(b: Tensor) -> QuantMatrix:
    scales, mins = (b[..., :16] & 15).to(torch.int8), (b[..., :16] >> 4).to(torch.int8)
    return _matrix(_fields(b[..., 16:80], 32, 2), scales, mins, _half(b, 80), -_half(b, 82))


def _q3_k(b: Tensor) -> QuantMatrix:
    numbers = _fields(b[..., 32:96], 32, 2) | _fields(b[..., :32], 32, 1) << 2
    scales = _fields(b[..., 96:104], 8, 4) | _fields(b[..., 104:108], 4, 2) << 4
    return _matrix(numbers, scales.to(torch.int8) - 32, factors=_half(b, 108))


def _iq4_xs(b: Tensor) -> QuantMatrix:
    high = _fields(b[..., 2:4], 1, 2)
    scales = _fields(b[..., 4:8], 1, 4) | high << 4
    return _matrix(_fields(b[..., 8:], 16, 4), scales.to(torch.int8) - 32, factors=_half(b, 0))


_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)  # twice the values of four bits without the sign
_MXFP4 = tuple(12 + x for x in (*_E2M1, *(-x for x in _E2M1)))
_IQ4 = tuple(128 + x for x in (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))

KINDS = {
    "Q4_0": GgufKind(32, 18, QuantForm(4, 32, "float16", offset=8), _q4_0),
    "Q4_1": GgufKind(32, 20, QuantForm(4, 32, "float16", has_min=True), _q4_1),
    "Q5_0": GgufKind(32, 22, QuantForm(5, 32, "float16", offset=16), _q5_0),
    "Q5_1": GgufKind(32, 24, QuantForm(5, 32, "float16", has_min=True), _q5_1),
    "Q8_0": GgufKind(32, 34, QuantForm(8, 32, "float16", offset=128), _q8_0),
    "MXFP4": GgufKind(32, 17, QuantForm(4, 32, "bfloat16", offset=12, table=_MXFP4), _mxfp4),
    "IQ4_NL": GgufKind(32, 18, QuantForm(4, 32, "float16", offset=128, table=_IQ4), _q4_0),
    "Q2_K": GgufKind(256, 84, QuantForm(4, 16, "two-level", has_min=True), _q2_k),
    "Q3_K": GgufKind(256, 110, QuantForm(4, 16, "two-level", offset=4), _q3_k),
    "Q4_K": GgufKind(256, 144, QuantForm(4, 32, "two-level", has_min=True), _q4_k),
    "Q5_K": GgufKind(256, 176, QuantForm(5, 32, "two-level", has_min=True), _q5_k),
    "Q6_K": GgufKind(256, 210, QuantForm(6, 16, "two-level", offset=32), _q6_k),
    "IQ4_XS": GgufKind(256, 136, QuantForm(4, 32, "two-level", offset=128, table=_IQ4), _iq4_xs),
}
