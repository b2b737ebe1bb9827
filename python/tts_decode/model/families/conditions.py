"""Checks that a model computes what its family's declaration says, part by part, or says why it does not."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..hooks import changing_hooks
from ..packed_clamped_experts import PackedClampedExperts
from ..packed_modules import PackedEmbedding, PackedExperts, PackedLinear
from ..quantised_experts import QuantisedExperts
from ..quantised_modules import Quantised, QuantisedEmbedding, QuantisedLinear
from ..support.features import stored_head_dim
from ..support.named_features import text_body
from .catalogue import FAMILIES
from .declaration import Family
from .reading import (
    ACTIVATIONS,
    activation_of,
    epsilon_of,
    is_mixture,
    is_parallel,
    layer_norms,
    linears_of,
    part,
)

# Fields of a config that every declaration covers: sizes, tokens, training settings, and rotary angles,
# scales and activations, which are read from the model's modules.
_COVERED = {
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "norm_epsilon",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
}
# Modules allowed besides classes of the model's own file.
_LINEAR = {nn.Linear, PackedLinear, QuantisedLinear}
_PARTS = {
    *_LINEAR,
    *(Quantised, QuantisedExperts, PackedEmbedding, PackedExperts, PackedClampedExperts),
    *(nn.Embedding, QuantisedEmbedding, nn.ModuleList, nn.LayerNorm, nn.Dropout),
    *ACTIVATIONS,
}


def why_general(model: Any) -> str | None:
    """Returns why a model runs over the general path; None if it can run over packed weights."""
    base = text_body(model)
    family = FAMILIES.get(type(base).__name__)
    if family is None:
        return f"{type(base).__name__} is declared by no family"
    if base is not model.base_model and type(model).__name__ not in family.wrappers:
        return f"{type(model).__name__} is no wrapper in the declaration of {family.base}"
    reasons = (
        _unknown_option(family, base.config) or _foreign_part(base, model) or _changed_weight(base, model)
    )
    if reasons is not None:
        return reasons
    for index, layer in enumerate(base.layers):
        if reason := _undeclared(family, layer):
            return f"layer {index}: {reason}"
    return _differing_layers(family, base)


def _unknown_option(family: Family, config: Any) -> str | None:
    if not dataclasses.is_dataclass(config):
        return f"{type(config).__name__} does not say which fields it has"
    known = {field.name for field in dataclasses.fields(PreTrainedConfig)} | _COVERED | {*family.options}
    for field in dataclasses.fields(config):
        if field.name not in known and getattr(config, field.name, None) not in (None, False):
            return f"config.{field.name} is not covered by the declaration of {family.base}"
    return None


def _foreign_part(base: Any, model: Any) -> str | None:
    """Returns a module that is not the family's own, or was changed on the object."""
    for name, module in base.named_modules():
        if type(module).__module__ != type(base).__module__ and type(module) not in _PARTS:
            return f"{name} is {type(module).__name__}"
        if hasattr(module, "in_features") and type(module) not in _LINEAR:
            return f"{name} is {type(module).__name__}"  # adapters, ones that others quantised
    for name, module in model.named_modules():
        if "forward" in vars(module) or changing_hooks(module):
            return f"{name} has a forward or hooks of its own"
    head = model.get_output_embeddings()
    if head is not None and (type(head) not in _LINEAR or head.bias is not None):
        return "the head is no linear layer without bias"
    return None


def _changed_weight(base: Any, model: Any) -> str | None:
    """Returns a weight that is no plain tensor, or of a size that panels do not support."""
    for name, weight in [*model.named_parameters(), *_panels(model)]:
        if weight.is_inference():
            return f"{name} was made in inference mode, and has no version to look at"
        if type(weight.data) is not Tensor:
            return f"{name} is {type(weight.data).__name__}"  # unpacks itself
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % 2:
            return f"{name} has {module.in_features} inputs, no even number"
    return None if base.config.hidden_size % 16 == 0 else "hidden_size is no multiple of 16"


def _panels(model: Any) -> list[tuple[str, Tensor]]:
    return [(f"{name}.panels", m.panels) for name, m in model.named_modules() if isinstance(m, Quantised)]


def _undeclared(family: Family, layer: Any) -> str | None:
    """Returns what a layer has that its declaration does not cover, or lacks."""
    attention, mlp = part(layer, "self_attn"), part(layer, "mlp")
    mixture, linears = is_mixture(family, mlp), linears_of(family, layer)
    norms = {name: part(layer, name) for name in layer_norms(family)}
    if norms and is_parallel(family, layer) and norms.get(family.mlp_norm or "") is None:
        norms.pop(family.mlp_norm or "", None)  # the MLP reads through input_norm
    norms |= {f"self_attn.{name}": part(attention, name) for name in family.head_norms or ()}
    for name, module in (linears | norms).items():
        if module is None:
            return f"it has no {name}"
    declared = {f"{name}.weight" for name in (*linears, *norms)}
    declared |= {f"{name}.{tensor}" for name in linears for tensor in ("panels", "weight_panels", "bias")}
    if family.sinks is not None:
        declared.add(f"self_attn.{family.sinks}")
    if mixture:
        declared |= _weights_of_experts(family)
    if family.norm.startswith("layer"):
        declared |= {f"{name}.bias" for name in norms}
    for name, _ in [*layer.named_parameters(), *layer.named_buffers()]:
        if name not in declared:
            return f"{name} is not in the declaration of {family.base}"
    for side, names in ("self_attn", family.qkv), ("mlp", () if mixture else family.gate_up):
        if len({linears[f"{side}.{name}"].bias is None for name in names}) > 1:
            return f"only some of {', '.join(names)} have a bias"
    shared = part(mlp, family.shared_expert) if mixture else None
    inner = mlp.experts if mixture else mlp
    for one in () if mixture and family.clamped_experts else (inner, *([] if shared is None else [shared])):
        activation = activation_of(family, one)
        if activation is None or (mixture and activation != "swiglu"):
            return f"the activation {type(part(one, family.activation)).__name__}"
    widths = [module.in_features for name, module in linears.items() if name.endswith(f".{family.down}")]
    widths += [_experts_width(family, inner)] if mixture else []
    if any(width % 16 for width in widths):
        return "the width of the MLP is no multiple of 16"
    if shared is not None and part(shared, family.down).bias is not None:
        return "the shared expert has biases"
    return None


def _weights_of_experts(family: Family) -> set[str]:
    """Returns the weights of a layer whose MLP is a mixture."""
    names = {f"mlp.{family.router}.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    names |= {"mlp.experts.gate_up_proj_panels", "mlp.experts.down_proj_panels"}
    names |= {f"mlp.experts.{name}.panels" for name in ("gate", "up", "down")}
    if family.clamped_experts:
        names |= {f"mlp.{family.router}.bias", "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"}
        names |= {f"mlp.experts.{name}.bias" for name in ("gate", "up", "down")}
    return names


def _experts_width(family: Family, experts: Any) -> int:
    if isinstance(experts, QuantisedExperts) or family.clamped_experts:
        return int(experts.intermediate_size)
    if isinstance(experts, PackedExperts):
        return experts.parts["down_proj"].shape[-1]
    return int(experts.down_proj.shape[-1])


def _differing_layers(family: Family, base: Any) -> str | None:
    """Returns a difference in what all layers must share in one call."""
    norms = [m for m in base.modules() if isinstance(m, nn.LayerNorm) or "Norm" in type(m).__name__]
    if len({epsilon_of(norm) for norm in norms}) > 1:
        return "norms differ in their epsilon"
    heads = set()
    for attention in (layer.self_attn for layer in base.layers):
        outputs = sum(part(attention, name).out_features for name in family.qkv)
        heads.add((attention.head_dim, attention.o_proj.in_features, outputs))
    if len(heads) > 1:
        return "layers differ in their heads"
    head_dim = next(iter(heads))[0]
    return None if head_dim == stored_head_dim(head_dim) else f"heads of {head_dim} channels"
