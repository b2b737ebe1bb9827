"""The computation of one decoder layer, as data, and checks that its weights fit together."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Guard, Number, Rule, Signature, choice, flag, instance, integer, real
from ..checks.pages import FLOAT32, PACKED_HEAD_DIM
from .experts import Experts, SharedExpert, check_mlp, checked_experts, weights_of_experts
from .packed_weight import FLOAT_DTYPES, PackedWeight
from .weight import (
    Weight,
    Weights,
    check_weight,
    check_weights,
    is_gated,
    matrices,
    outputs_of,
    require_weight,
    require_weights,
    tensors_of_weights,
)

# Of `DecoderLayer.activation`: csrc/cpu/kernels/row_ops_kernels.h: Activation, and whether there is a gate.
_MLPS = {
    "swiglu": (0, True),
    "geglu_tanh": (1, True),
    "geglu": (2, True),
    "gelu_tanh": (1, False),
    "gelu": (2, False),
    "relu_squared": (3, False),
}


class DecoderLayer(NamedTuple):
    """x += out_norm(o(attention(input_norm(x)))) * factor, then x += mlp_out_norm(mlp(mlp_norm(x))) * factor.

    A norm float32 [hidden] is the weight of an RMS norm; one of [2, hidden] is weight and bias of a LayerNorm
    (Ba et al., arXiv 1607.06450); None leaves its input unchanged. Weights may be of different kinds. A tuple
    is several weights with concatenated outputs; all but the last have a multiple of 16 outputs.

    Attributes:
        input_norm, mlp_norm: before attention and MLP.
        qkv: hidden -> queries, keys and values of all heads, concatenated.
        q_norm, k_norm: weights of RMS norms of q and k before rotation, or None: float32 [head_dim] per head
            (Qwen3), or [heads * head_dim] over all heads together (OLMo 2).
        o: heads -> hidden.
        gate_up, down: of the MLP. gate_up is gated, or a plain weight whose outputs `activation` describes.
            None if there are experts.
        scale: of the logits.
        window: most tokens that a query sees; None: all.
        out_norm, mlp_out_norm: of what attention and MLP add to x.
        activation: "swiglu", silu(gate) * up (Shazeer, arXiv 2002.05202), or "geglu", gelu(gate) * up, where
            the outputs of gate come before those of up; without a gate "gelu", or "relu_squared", relu(x)^2
            (So et al., arXiv 2109.08668). The suffix "_tanh" selects the tanh form of GELU.
        parallel: mlp_norm reads the x from before attention (GPT-J).
        factor: of both sums.
        soft_cap: c turns a scaled logit s into c * tanh(s / c).
        rotary: which of the step's tables rotates q and k; None: they are not rotated.
        rotary_pairs: channel 2 i rotates with 2 i + 1, instead of i with i + rotary_dim / 2.
        experts: the MLP, if it is a mixture.
        sinks: float32 [num_q_heads], same as for `tree_attention`.
    """

    input_norm: Tensor | None
    qkv: Weight | tuple[Weight, ...]
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Weight
    mlp_norm: Tensor | None
    gate_up: Weight | tuple[Weight, ...] | None
    down: Weight | None
    scale: float
    window: int | None
    out_norm: Tensor | None = None
    mlp_out_norm: Tensor | None = None
    activation: str = "swiglu"
    parallel: bool = False
    factor: float = 1.0
    soft_cap: float | None = None
    rotary: int | None = 0
    rotary_pairs: bool = False
    experts: Experts | None = None
    sinks: Tensor | None = None

    @property
    def qkv_outputs(self) -> int:
        """Total outputs of all weights of qkv."""
        return outputs_of(self.qkv)


class LayerShape(NamedTuple):
    """Sizes that the layers of a decoder share."""

    hidden: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    eps: float

    def core(self) -> _core.DecoderShape:
        heads = self.num_q_heads, self.num_kv_heads, self.head_dim
        return _core.DecoderShape(self.hidden, heads, self.rotary_dim, self.eps)


def checked_layer(index: int, layer: DecoderLayer, shape: LayerShape) -> _core.DecoderLayer:
    """Returns what the kernels read of a layer.

    Raises:
        TypeError, ValueError: a weight or a number does not fit.
    """
    try:
        return _checked_layer(layer, shape)
    except (TypeError, ValueError) as error:
        raise type(error)(f"layers[{index}].{error}") from None


def _checked_layer(layer: DecoderLayer, shape: LayerShape) -> _core.DecoderLayer:
    q_width, kv_width = shape.num_q_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    check_weights("qkv", layer.qkv, shape.hidden, (q_width, kv_width, kv_width))
    check_weight("o", layer.o, q_width, shape.hidden, whole=True)
    codes, experts = _checked_mlp(layer, shape), checked_experts(layer.experts, shape.hidden)
    numbers = real("scale", layer.scale), real("factor", layer.factor)
    soft_cap = 0.0 if layer.soft_cap is None else real("soft_cap", layer.soft_cap)
    capped = None if layer.soft_cap is None else soft_cap
    _NUMBERS.check((layer.o.panels, *numbers, capped, shape.eps, *shape[:5]))
    if flag("parallel", layer.parallel) and layer.mlp_norm is None:
        raise ValueError("mlp_norm: got None, expected a norm: the MLP is parallel to attention")
    norms = [
        norm_address(name, getattr(layer, name), shape.hidden)
        for name in ("input_norm", "mlp_norm", "out_norm", "mlp_out_norm")
    ]
    q_norm, q_whole = _head_norm("q_norm", layer.q_norm, shape.head_dim, q_width)
    k_norm, k_whole = _head_norm("k_norm", layer.k_norm, shape.head_dim, kv_width)
    if q_norm and k_norm and q_whole != k_whole and shape.num_q_heads > 1 and shape.num_kv_heads > 1:
        raise ValueError("k_norm: expected a norm of each head or of all heads together, as q_norm is")
    window = 0 if layer.window is None else integer("window", layer.window, 1)
    sinks = _vector_address("sinks", layer.sinks, shape.num_q_heads)
    table = -1 if layer.rotary is None else integer("rotary", layer.rotary, 0)
    return _core.DecoderLayer(
        norms,
        (q_norm, k_norm, q_whole or k_whole),
        [matrices(side) for side in (layer.qkv, layer.o, layer.gate_up, layer.down) if side is not None],
        (table, flag("rotary_pairs", layer.rotary_pairs)),
        (numbers[0], soft_cap, min(window, 2**30), sinks),
        codes,
        layer.parallel,
        numbers[1],
        experts,
    )


def _checked_mlp(layer: DecoderLayer, shape: LayerShape) -> tuple[int, bool]:
    """Returns the code of the activation, and whether it has a gate."""
    choice("activation", layer.activation, tuple(_MLPS))
    codes = _MLPS[layer.activation]
    if layer.gate_up is not None and layer.down is not None:
        if is_gated(layer.gate_up) and layer.activation != "swiglu":
            raise ValueError(f"activation: got {layer.activation!r}, expected 'swiglu' as gate_up is gated")
        check_mlp(("gate_up", "down"), layer.gate_up, layer.down, shape.hidden, has_gate=codes[1])
    return codes


def _weights_of(layer: DecoderLayer) -> dict[str, Weights]:
    """Returns the weights by their names in messages."""
    named = {name: getattr(layer, name) for name in ("qkv", "o", "gate_up", "down")}
    if layer.experts is None:
        return named
    return {name: named[name] for name in ("qkv", "o")} | weights_of_experts(layer.experts)


def tensors_of(layer: DecoderLayer) -> list[Tensor]:
    """All that the kernels read."""
    norms = (layer.input_norm, layer.mlp_norm, layer.out_norm, layer.mlp_out_norm, layer.q_norm, layer.k_norm)
    weights = [tensor for one in _weights_of(layer).values() for tensor in tensors_of_weights(one)]
    return [part for part in (*norms, layer.sinks) if part is not None] + weights


def refuse_parts(index: int, layer: DecoderLayer) -> None:
    """Raises TypeError if parts of a layer are not of the declared types."""
    instance(f"layers[{index}]", layer, DecoderLayer, "name its weights")
    if layer.experts is not None:
        instance(f"layers[{index}].experts", layer.experts, Experts, "name its weights")
        if layer.experts.shared is not None:
            named = f"layers[{index}].experts.shared"
            instance(named, layer.experts.shared, SharedExpert, "name its weights")
        if (layer.gate_up, layer.down) != (None, None):
            raise TypeError(f"layers[{index}].gate_up, down: got weights beside experts, expected None")
    for name, weights in _weights_of(layer).items():
        title = f"layers[{index}].{name}"
        if name == "router":
            instance(title, weights, PackedWeight, "make it with PackedWeight.pack")
        elif name.startswith(("qkv", "gate_up")):
            require_weights(title, weights)
        else:
            require_weight(title, weights)


def norm_address(name: str, norm: Tensor | None, width: int) -> tuple[int, bool]:
    """Returns the address of a norm, 0 for none, and whether it is a LayerNorm."""
    if norm is None:
        return 0, False
    _norm_guard(name).check((norm, width))
    return norm.data_ptr(), norm.dim() == 2


def _head_norm(name: str, norm: Tensor | None, head_dim: int, width: int) -> tuple[int, bool]:
    """Returns the address of a norm of heads, and whether it spans all heads together."""
    whole = isinstance(norm, Tensor) and norm.shape == (width,) and width != head_dim
    return _vector_address(name, norm, width if whole else head_dim), whole


def _vector_address(name: str, vector: Tensor | None, width: int) -> int:
    """Returns the address of a vector, 0 for none."""
    if vector is None:
        return 0
    _vector_guard(name).check((vector, width))
    return vector.data_ptr()


@lru_cache
def _norm_guard(name: str) -> Guard:
    def takes(values: Mapping[str, Any]) -> Signature:
        norm = values[name]
        shape = "2, hidden" if isinstance(norm, Tensor) and norm.dim() == 2 else "hidden"
        return Signature(Number("hidden", "hidden >= 1"), Array(name, shape, FLOAT32), home=name)

    return Guard("DecoderLayers", (name, "hidden"), takes)


@lru_cache
def _vector_guard(name: str) -> Guard:
    signature = Signature(Number("width", "width >= 1"), Array(name, "width", FLOAT32), home=name)
    return Guard("DecoderLayers", (name, "width"), lambda _: signature)


def _numbers_of(values: Mapping[str, Any]) -> Signature:
    panels = "num_panels, words, lanes" + (", 2" if values["panels"].dim() == 4 else "")
    return Signature(
        *_TAKES,
        Rule("num_q_heads", "num_q_heads % num_kv_heads == 0"),
        Rule("rotary_dim", "rotary_dim <= head_dim"),
        Array("panels", panels, (*FLOAT_DTYPES, torch.uint8)),
        home="panels",
    )


_TAKES = (
    Number("scale", "2**-126 <= scale <= 2**64", float),
    Number("factor", "2**-126 <= factor <= 2**64", float),
    Number("soft_cap", "2**-126 <= soft_cap <= 2**12", float, optional=True),
    Number("eps", "2**-126 <= eps <= 2**127", float),
    Number("hidden", "hidden >= 1"),
    Number("num_q_heads", "1 <= num_q_heads < 2**31"),
    Number("num_kv_heads", "1 <= num_kv_heads < 2**31"),
    Number("head_dim", PACKED_HEAD_DIM),
    Number("rotary_dim", "rotary_dim >= 2 and rotary_dim % 2 == 0"),
)
_NUMBERS = Guard("DecoderLayers", ("panels", *(number.name for number in _TAKES)), _numbers_of)
