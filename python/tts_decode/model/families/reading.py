"""Reads a model as its family declares it: packed layers, norms, angles and factors."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import (
    GELUActivation,
    GELUTanh,
    NewGELUActivation,
    ReLUSquaredActivation,
    SiLUActivation,
)

from tts_kernels import DecoderLayer, Experts, PackedWeight, SharedExpert, Weight

from ..packed_modules import PackedExperts, PackedLinear
from ..quantised_experts import QuantisedExperts
from ..quantised_modules import QuantisedLinear
from ..support.features import AttentionCall
from .declaration import Family

# By the activation's class: names for an MLP with a gate and without.
ACTIVATIONS: dict[type, tuple[str | None, str | None]] = {
    nn.SiLU: ("swiglu", None),
    SiLUActivation: ("swiglu", None),
    GELUTanh: ("geglu_tanh", "gelu_tanh"),
    NewGELUActivation: ("geglu_tanh", "gelu_tanh"),
    GELUActivation: ("geglu", "gelu"),
    ReLUSquaredActivation: (None, "relu_squared"),
}


def activation_of(family: Family, mlp: Any) -> str | None:
    """Returns `DecoderLayer`'s name for an MLP's activation; None if it has none."""
    gated, plain = ACTIVATIONS.get(type(getattr(mlp, family.activation, None)), (None, None))
    return gated if family.gated else plain


def is_mixture(family: Family, mlp: Any) -> bool:
    """Whether it is an MLP with a router and `experts` whose tensors hold the weights of all."""
    return family.normalises_experts is not None and part(mlp, "experts") is not None


def clamp_of(family: Family, experts: Any) -> tuple[float, float] | None:
    """Returns `Experts.clamp` for a mixture's experts."""
    if not family.clamped_experts:
        return None
    known: tuple[float, float] | None = getattr(experts, "clamp", None)
    return (float(experts.alpha), float(experts.limit)) if known is None else known


def norm_of(family: Family, norm: Any) -> Tensor | None:
    """Returns a norm in the format of `DecoderLayer`."""
    if norm is None:
        return None
    weight: Tensor = norm.weight.detach().float()
    if family.norm.endswith("plus_one"):
        weight = weight + 1.0
    if family.norm.startswith("rms"):
        return weight
    bias = getattr(norm, "bias", None)
    return torch.stack([weight, torch.zeros_like(weight) if bias is None else bias.detach().float()])


def epsilon_of(norm: Any) -> float:
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)


def linears_of(family: Family, layer: Any) -> dict[str, Any]:
    """Returns the declared linear layers of a layer, except routers, by name; None: absent."""
    attention, mlp = part(layer, "self_attn"), part(layer, "mlp")
    linears = {f"self_attn.{name}": part(attention, name) for name in (*family.qkv, "o_proj")}
    named, whose = "mlp", mlp
    if is_mixture(family, mlp):
        named, whose = f"mlp.{family.shared_expert}", part(mlp, family.shared_expert)
        if family.shared_expert is None:
            return linears
        if family.shared_gate is not None:
            linears[f"mlp.{family.shared_gate}"] = part(mlp, family.shared_gate)
    return linears | {f"{named}.{name}": part(whose, name) for name in (*family.gate_up, family.down)}


def is_parallel(family: Family, layer: Any) -> bool:
    return getattr(layer, family.parallel) if isinstance(family.parallel, str) else family.parallel


def pack_layer(family: Family, layer: Any, call: AttentionCall) -> DecoderLayer:
    """Packs a layer. call: what its attention passes on."""
    attention, mlp, parallel = layer.self_attn, layer.mlp, is_parallel(family, layer)
    input_norm, mlp_norm, out_norm, mlp_out_norm = (
        norm_of(family, part(layer, name))
        for name in (family.input_norm, family.mlp_norm, family.out_norm, family.mlp_out_norm)
    )
    q_norm, k_norm = (norm_of(family, part(attention, name)) for name in family.head_norms or (None,) * 2)
    sinks = part(attention, family.sinks)
    mixture = is_mixture(family, mlp)
    activation = "swiglu" if mixture else activation_of(family, mlp)
    if activation is None:
        raise ValueError(f"{type(mlp).__name__}: its activation is none that kernels have")
    return DecoderLayer(
        input_norm=input_norm,
        qkv=_packed([part(attention, name) for name in family.qkv]),
        q_norm=q_norm,
        k_norm=k_norm,
        o=weight_of(attention.o_proj),
        mlp_norm=input_norm if parallel and mlp_norm is None else mlp_norm,
        gate_up=None if mixture else _packed_gate_up(family, mlp, activation),
        down=None if mixture else weight_of(part(mlp, family.down)),
        scale=attention.scaling,
        window=call.window,
        out_norm=out_norm,
        mlp_out_norm=mlp_out_norm,
        activation=activation,
        parallel=parallel,
        factor=1.0 if family.factor is None else getattr(layer, family.factor),
        soft_cap=call.soft_cap,
        rotary=_table(family, attention) if family.rotates(attention) else None,
        rotary_pairs=family.rotary_pairs,
        experts=_packed_experts(family, mlp) if mixture else None,
        sinks=None if sinks is None else sinks.detach().float(),
    )


def angles(family: Family, base: Any, x: Tensor, positions: Tensor, tables: int) -> tuple[Tensor, Tensor]:
    """Returns cos and sin of positions int64 [T].

    They are float32 [T, rotary_dim], or [tables, T, rotary_dim] of the first `tables` if there are several.
    """
    if family.rotary_by == "layer_type":
        made = [base.rotary_emb(x, positions[None], kind) for kind in _layer_types(base.config)[:tables]]
    else:
        modules = list(base.rotary_embs)[:tables] if family.rotary_by == "theta" else []
        made = [module(x, positions[None]) for module in modules or [base.rotary_emb]]
    cos, sin = (torch.cat([of_kind[side] for of_kind in made]) for side in (0, 1))
    if tables == 1:
        cos, sin = cos[0], sin[0]
    if family.angles == "once":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    if family.rotary_pairs and family.angles != "in_pairs":
        cos, sin = (part[..., : part.shape[-1] // 2].repeat_interleave(2, -1) for part in (cos, sin))
    return cos.contiguous(), sin.contiguous()


def embedding_factor(family: Family, base: Any) -> float:
    return 1.0 if family.embedding_factor is None else float(getattr(base, family.embedding_factor))


def logit_settings(family: Family, model: Any) -> tuple[float, float | None]:
    """Returns the factor and the soft cap of the logits, if the model has a head."""
    if model.get_output_embeddings() is None:
        return 1.0, None
    factor, divisor, cap = (
        None if path is None else attribute(model, path)
        for path in (family.logit_factor, family.logit_divisor, family.logit_soft_cap)
    )
    return float(factor or 1.0) / float(divisor or 1.0), cap


def layer_norms(family: Family) -> list[str]:
    """Returns the names of the norms in a layer."""
    names = (family.input_norm, family.out_norm, family.mlp_norm, family.mlp_out_norm)
    return [name for name in names if name is not None]


def part(module: Any, name: str | None) -> Any:
    """Returns a part of a module; None if it has none of this name."""
    return None if name is None else getattr(module, name, None)


def attribute(value: Any, path: str) -> Any:
    """Returns the value at a path; None if a wrapper has none of this name."""
    return reduce(part, path.split("."), value)


def _layer_types(config: Any) -> list[str]:
    """Returns the layer types in the order of the rotary tables."""
    return sorted(set(config.layer_types))


def _table(family: Family, attention: Any) -> int:
    if family.rotary_by is None:
        return 0
    config, layer = attention.config, attention.layer_idx
    if family.rotary_by == "layer_type":
        return _layer_types(config).index(config.layer_types[layer])
    bases = sorted({theta for theta in config.layer_rope_theta if theta})  # in the order of the modules
    return bases.index(config.layer_rope_theta[layer])


def weight_of(linear: Any) -> Weight:
    """Returns the weight of a linear layer: its own if packed or quantised, else a packed copy."""
    if isinstance(linear, PackedLinear) and linear.still_packed():
        return linear.packed_weight.widened() if linear.exact else linear.packed_weight
    if isinstance(linear, QuantisedLinear):
        return linear.quantised.exact() if linear.exact else linear.quantised
    return PackedWeight.pack(*_float_parts(linear))


def _has_panels(linear: Any) -> bool:
    """Whether `weight_of` copies nothing."""
    return isinstance(linear, PackedLinear | QuantisedLinear)


def _float_parts(linear: Any) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of a linear layer, or of a router."""
    bias = getattr(linear, "bias", None)
    return linear.weight.detach(), None if bias is None else bias.detach()


def _packed(linears: list[Any]) -> Weight | tuple[Weight, ...]:
    """Packs concatenated linear layers. Weights that already have panels stay in place, separately."""
    if len(linears) == 1:
        return weight_of(linears[0])
    if any(map(_has_panels, linears)):
        return tuple(map(weight_of, linears))
    weights, biases = zip(*map(_float_parts, linears), strict=True)
    bias = None if biases[0] is None else torch.cat(biases)
    return PackedWeight.pack(torch.cat(weights), bias)


def _packed_experts(family: Family, mlp: Any) -> Experts:
    router, experts, named = part(mlp, family.router), mlp.experts, family.normalises_experts
    gate_up: tuple[Weight | tuple[Weight, ...], ...]
    down: tuple[Weight, ...]
    if isinstance(experts, QuantisedExperts | PackedExperts):
        gate_up = tuple(expert.gate_up for expert in experts.experts)
        down = tuple(expert.down for expert in experts.experts)
    elif family.clamped_experts:
        gate_up = tuple(map(_packed_alternating, experts.gate_up_proj, experts.gate_up_proj_bias))
        down = tuple(map(_packed_transposed, experts.down_proj, experts.down_proj_bias))
    else:
        gate_up = tuple(PackedWeight.pack_gated(*one.chunk(2)) for one in experts.gate_up_proj.detach())
        down = tuple(PackedWeight.pack(one) for one in experts.down_proj.detach())
    return Experts(
        router=PackedWeight.pack(*_float_parts(router)),
        gate_up=gate_up,
        down=down,
        top_k=router.top_k,
        normalised=bool(getattr(router, named) if isinstance(named, str) else named),
        clamp=clamp_of(family, experts),
        shared=_packed_shared(family, mlp),
    )


def _packed_shared(family: Family, mlp: Any) -> SharedExpert | None:
    shared, gate = part(mlp, family.shared_expert), part(mlp, family.shared_gate)
    if shared is None:
        return None
    down = weight_of(part(shared, family.down))
    return SharedExpert(
        _packed_gate_up(family, shared, "swiglu"), down, None if gate is None else weight_of(gate)
    )


def _packed_alternating(weight: Tensor, bias: Tensor) -> PackedWeight:
    """Packs weight [inputs, outputs] and bias [outputs] of alternating gate and up as concatenated ones."""
    return _packed_transposed(*(torch.cat((one[..., ::2], one[..., 1::2]), -1) for one in (weight, bias)))


def _packed_transposed(weight: Tensor, bias: Tensor) -> PackedWeight:
    return PackedWeight.pack(weight.detach().T.contiguous(), bias.detach())


def _packed_gate_up(family: Family, mlp: Any, activation: str) -> Weight | tuple[Weight, ...]:
    """Packs gate and up as a gated weight if the product's kernel has the activation."""
    linears = [part(mlp, name) for name in family.gate_up]
    plain = any(linear.bias is not None or _has_panels(linear) for linear in linears)
    if not family.gated or activation != "swiglu" or plain:
        return _packed(linears)
    weights = [_float_parts(linear)[0] for linear in linears]
    gate, up = weights if len(weights) == 2 else weights[0].chunk(2)
    return PackedWeight.pack_gated(gate, up)
