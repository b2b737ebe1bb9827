"""Layers with weights of mixed kinds, some stacked, and their original tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from layer_reference import HEAD_DIM, KV_HEADS, Q_HEADS, Matrices, make
from quantised_cases import random_blocks
from torch import Tensor

from tts_kernels import DecoderLayer, PackedWeight, QuantisedWeight, Weight

HIDDEN, MLP = 256, 512
Drawn = tuple[Weight, tuple[Tensor, Tensor | None]]


class Mix(NamedTuple):
    """Kinds of GGUF tensors, "float32" or "bfloat16", of each weight."""

    q: str
    k: str
    v: str
    o: str
    gate: str
    up: str
    down: str
    together: bool = False  # gate and up, of one kind, in one gated weight where it has the activation


# Queries and keys of the first share their int8 rows with each other, values need others.
MIXES = {
    "Q4_K_M": Mix("Q4_K", "Q4_K", "Q6_K", "Q4_0", "Q4_K", "Q4_K", "Q6_K", together=True),
    "halves": Mix("Q8_0", "Q5_1", "IQ4_NL", "Q8_0", "Q5_K", "Q3_K", "IQ4_XS"),
    "floats beside": Mix("float32", "Q4_0", "bfloat16", "bfloat16", "Q4_0", "float32", "Q5_0"),
    "floats": Mix("bfloat16", "float32", "float32", "float32", "bfloat16", "bfloat16", "bfloat16"),
    "one kind": Mix("MXFP4", "MXFP4", "MXFP4", "Q4_1", "MXFP4", "MXFP4", "Q2_K", together=True),
}


def draw(kind: str, outputs: int, inputs: int, *, bias: bool = False) -> Drawn:
    """A weight, and its matrix and bias."""
    added = torch.randn(outputs) if bias else None
    if kind in ("float32", "bfloat16"):
        matrix = (torch.randn(outputs, inputs) * inputs**-0.5).to(getattr(torch, kind))
        return PackedWeight.pack(matrix, added), (matrix.float(), added)
    weight = QuantisedWeight.from_gguf(kind, random_blocks(kind, outputs, inputs, _seed()), added)
    return weight, (weight.dequantised(), added)


def draw_gated(kind: str, outputs: int, inputs: int) -> Drawn:
    """The same of gate and up in one weight; the matrix has gate, then up."""
    gate, up = (random_blocks(kind, outputs, inputs, _seed()) for _ in range(2))
    weight = QuantisedWeight.from_gguf_gated(kind, gate, up)
    return weight, (weight.dequantised().flatten(0, 1), None)


def joined(*drawn: Drawn) -> tuple[tuple[Weight, ...], tuple[Tensor, Tensor | None]]:
    """Side by side."""
    matrices, biases = zip(*(one[1] for one in drawn), strict=True)
    given = [torch.zeros(len(m)) if b is None else b for m, b in zip(matrices, biases, strict=True)]
    return tuple(one[0] for one in drawn), (torch.cat(matrices), torch.cat(given))


def make_mixed(mix: Mix, form: dict[str, Any] | None = None) -> tuple[DecoderLayer, Matrices]:
    """Makes a layer, with a form as in `layer_reference.make`."""
    layer, matrices = make(form or {}, torch.float32, HIDDEN, MLP)
    q_width, kv_width = Q_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    qkv, of_qkv = joined(
        draw(mix.q, q_width, HIDDEN, bias=True),
        draw(mix.k, kv_width, HIDDEN),
        draw(mix.v, kv_width, HIDDEN, bias=True),
    )
    o, of_o = draw(mix.o, HIDDEN, q_width)
    gate_up: Weight | tuple[Weight, ...]
    if mix.together and layer.activation == "swiglu":
        gate_up, of_gate_up = draw_gated(mix.gate, MLP, HIDDEN)
    else:
        gate_up, of_gate_up = joined(draw(mix.gate, MLP, HIDDEN), draw(mix.up, MLP, HIDDEN, bias=True))
    down, of_down = draw(mix.down, HIDDEN, MLP)
    layer = layer._replace(qkv=qkv, o=o, gate_up=gate_up, down=down)
    return layer, replace(matrices, qkv=of_qkv, o=of_o, gate_up=of_gate_up, down=of_down)


def near(actual: Tensor, expected: Tensor, share: float = 0.04) -> None:
    """Eight bits of x move a product by some 0.6 %, bfloat16 by less; of products of products it is more."""
    bound = share * float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected, atol=bound, rtol=0)


def _seed() -> int:
    return int(torch.randint(2**31, ()))
