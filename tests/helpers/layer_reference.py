"""Random `DecoderLayer`s, and their results in plain float64 torch, written after the docstring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tts_kernels import DecoderLayer, PackedWeight

EPS = 1e-5
HIDDEN, MLP, HEADS, Q_HEADS, KV_HEADS, HEAD_DIM = 48, 80, (6, 2, 32), 6, 2, 32
SIZES: dict[str, Any] = {"num_q_heads": 6, "num_kv_heads": 2, "head_dim": 32, "eps": EPS}


_gelu_tanh = partial(torch.nn.functional.gelu, approximate="tanh")
# The function, and 2 where it is of a gate.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "swiglu": (torch.nn.functional.silu, 2),
    "geglu_tanh": (_gelu_tanh, 2),
    "geglu": (torch.nn.functional.gelu, 2),
    "gelu_tanh": (_gelu_tanh, 1),
    "gelu": (torch.nn.functional.gelu, 1),
    "relu_squared": (lambda x: x.relu() ** 2, 1),
}


@dataclass(frozen=True)
class Matrices:
    """The weights of a layer before they were packed, [outputs, inputs], and their biases."""

    qkv: tuple[Tensor, Tensor | None]
    o: tuple[Tensor, Tensor | None]
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]


def norm(x: Tensor, weights: Tensor | None) -> Tensor:
    """RMS norm of [n], LayerNorm of [2, n], nothing of None."""
    if weights is None:
        return x
    if weights.dim() == 2:
        scale, shift = weights.double()
        return torch.nn.functional.layer_norm(x, x.shape[-1:], scale, shift, EPS)
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weights.double(), EPS)


def linear(x: Tensor, weight: tuple[Tensor, Tensor | None]) -> Tensor:
    matrix, bias = weight
    return torch.nn.functional.linear(x, matrix.double(), None if bias is None else bias.double())


def rotated(x: Tensor, cos: Tensor, sin: Tensor, pairs: bool) -> Tensor:
    """x: [T, heads, d]; cos and sin: [T, r] for the first r channels."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if pairs:
        crossed = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        crossed = torch.cat([-second, first], -1)
    return torch.cat([turned * cos[:, None].double() + crossed * sin[:, None].double(), rest], -1)


def before_attention(
    layer: DecoderLayer,
    weights: Matrices,
    x: Tensor,
    angles: tuple[Tensor, Tensor],
    heads: tuple[int, int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """angles: cos and sin [tables, T, r]. heads: of q, of k and v, and head_dim."""
    q_heads, kv_heads, head_dim = heads
    widths = [q_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    sides = list(linear(norm(x.double(), layer.input_norm), weights.qkv).split(widths, -1))
    made = []
    for side, side_norm in zip(sides, (layer.q_norm, layer.k_norm, None), strict=True):
        whole = side_norm is not None and len(side_norm) == side.shape[-1]
        split = (norm(side, side_norm) if whole else side).unflatten(-1, (-1, head_dim))
        made.append(split if whole else norm(split, side_norm))
    if layer.rotary is not None:
        cos, sin = (part[layer.rotary] for part in angles)
        made[:2] = [rotated(side, cos, sin, layer.rotary_pairs) for side in made[:2]]
    return made[0], made[1], made[2]


def after_attention(layer: DecoderLayer, weights: Matrices, x: Tensor, attended: Tensor) -> Tensor:
    x = x.double()
    added = norm(linear(attended.double().flatten(1), weights.o), layer.out_norm)
    y = x + added * layer.factor
    wide = linear(norm(x if layer.parallel else y, layer.mlp_norm), weights.gate_up)
    activate, gates = ACTIVATIONS[layer.activation]
    parts = wide.chunk(gates, -1)
    inner = activate(parts[0]) if gates == 1 else activate(parts[0]) * parts[1]
    return y + norm(linear(inner, weights.down), layer.mlp_out_norm) * layer.factor


def make(
    form: dict[str, Any], weights: torch.dtype, hidden: int = HIDDEN, mlp: int = MLP
) -> tuple[DecoderLayer, Matrices]:
    form = dict(form)
    kind, biases, heads, fused = (form.pop(key, None) for key in ("norms", "biases", "head_norms", "fused"))
    gates = ACTIVATIONS[form.get("activation", "swiglu")][1]

    def drawn_norm() -> Tensor:
        weight = torch.rand(hidden) + 0.5
        return torch.stack([weight, torch.randn(hidden)]) if kind == "layer" else weight

    def matrix(outputs: int, inputs: int) -> tuple[Tensor, Tensor | None]:
        weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(weights)
        return weight, torch.randn(outputs) if biases else None

    made = Matrices(
        qkv=matrix((Q_HEADS + 2 * KV_HEADS) * HEAD_DIM, hidden),
        o=matrix(hidden, Q_HEADS * HEAD_DIM),
        gate_up=matrix(gates * mlp, hidden),
        down=matrix(hidden, mlp),
    )
    norms = {name: drawn_norm() for name in ("input_norm", "mlp_norm")}
    norms |= {name: drawn_norm() for name in ("out_norm", "mlp_out_norm") if form.pop(name, None)}
    for name, count in (("q_norm", Q_HEADS), ("k_norm", KV_HEADS)):
        form[name] = (
            None if heads is None else torch.rand(HEAD_DIM * (count if heads == "whole" else 1)) + 0.5
        )
    if form.pop("sinks", None):
        form["sinks"] = 2 * torch.randn(Q_HEADS)
    gate_up = made.gate_up[0]
    layer = DecoderLayer(
        qkv=PackedWeight.pack(*made.qkv),
        o=PackedWeight.pack(*made.o),
        gate_up=PackedWeight.pack_gated(*gate_up.chunk(2)) if fused else PackedWeight.pack(*made.gate_up),
        down=PackedWeight.pack(*made.down),
        scale=0.2,
        window=None,
        **(norms | form),
    )
    return layer, made


def near(actual: Tensor, expected: Tensor, weights: torch.dtype) -> None:
    """At levels that multiply bfloat16 rows are rounded to it."""
    rounding = 2**-18 if weights == torch.float32 else 2**-6
    bound = rounding * float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected, atol=bound, rtol=0)
