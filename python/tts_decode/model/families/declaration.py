"""What distinguishes a family of models, as data: the vocabulary of `catalogue.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


def _always(_attention: Any) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """How the layers of a base model of transformers compute; the defaults are Llama's.

    Names are those of modules and attributes in the family's classes, so that sizes, biases and numbers are
    read from the model itself. A layer adds out_norm(attention(input_norm(x))) to x, then
    mlp_out_norm(mlp(mlp_norm(x))). Windows and soft caps are not declared: the forward at load records what
    the attention function receives.

    Attributes:
        base: class of the base model.
        options: fields of its config that this declaration covers, besides those of all models
            (`conditions.py`). A model whose config sets another one runs over the general path.
        wrappers: classes of multimodal models that contain the base model.
        norm: "rms" or "layer"; "rms_plus_one", "layer_plus_one" if the weight is stored without the one that
            is added to it (Gemma, Nemotron).
        input_norm, out_norm, mlp_norm, mlp_out_norm: modules of a layer; None: no such norm.
        head_norms: modules of the attention that norm q and k before the rotation, per head or over all heads
            together, depending on their weights.
        qkv: modules of the attention for q, k and v, or one whose outputs are these concatenated.
        gate_up: modules of the MLP for gate and up, or one with both; for an MLP without gate, the first
            module.
        gated: whether there is a gate.
        down, activation: modules of the MLP.
        normalises_experts: for an MLP that is a mixture (`is_mixture`), whether the weights of a token's
            experts are scaled to sum to 1; a name: the attribute of the router that says so. None: there are
            no mixtures.
        router: module of a mixture that chooses.
        shared_expert: module of a mixture: an MLP that all tokens go through. shared_gate: module for the
            number whose sigmoid weights it. None: there is none.
        clamped_experts: a mixture's experts are those of gpt-oss: biases, weights [inputs, outputs] in which
            the columns of gate and up alternate, and a clamped SwiGLU with their attributes alpha and limit.
        sinks: attribute of the attention: a logit of each head without a value (gpt-oss).
        rotates: whether a layer with this attention module rotates q and k.
        rotary_pairs: channel 2 i of a head rotates with channel 2 i + 1; otherwise i with i + half.
        angles: how the rotary module returns the angles of a head: all of them "twice", each "in_pairs" next
            to itself, or each "once".
        rotary_by: "layer_type" if the rotary module has angles for each of config.layer_types; "theta" if
            there is a rotary module for each base in config.layer_rope_theta; None: one for all layers.
        parallel: the MLP reads x from before attention, through mlp_norm, or input_norm if that is None. A
            name: the attribute of the layer that says so.
        factor: attribute of a layer: scales both sums. embedding_factor: attribute of the base model: scales
            the inputs of the first layer.
        logit_factor, logit_divisor, logit_soft_cap: attributes of the model with the head.
    """

    base: str
    options: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    norm: Literal["rms", "rms_plus_one", "layer", "layer_plus_one"] = "rms"
    input_norm: str | None = "input_layernorm"
    out_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_out_norm: str | None = None
    head_norms: tuple[str, str] | None = None
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    gated: bool = True
    down: str = "down_proj"
    activation: str = "act_fn"
    normalises_experts: bool | str | None = None
    router: str = "gate"
    shared_expert: str | None = None
    shared_gate: str | None = None
    clamped_experts: bool = False
    sinks: str | None = None
    rotates: Callable[[Any], bool] = _always
    rotary_pairs: bool = False
    angles: Literal["twice", "in_pairs", "once"] = "twice"
    rotary_by: Literal["layer_type", "theta"] | None = None
    parallel: bool | str = False
    factor: str | None = None
    embedding_factor: str | None = None
    logit_factor: str | None = None
    logit_divisor: str | None = None
    logit_soft_cap: str | None = None
