"""The figures of a model that determine its cost, from the model or from its config alone."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ..cost.forward import ModelShape
from .packed_modules import Packed, PackedEmbedding
from .quantised_modules import Quantised, QuantisedEmbedding, weight_shape
from .support.features import KVShape, refuse_config, refusing, stored_head_dim


def shape_of_model(model: Any, kv: KVShape) -> ModelShape:
    """Returns the shape of a loaded model, its KV in the dtype of its weights.

    For a model without LM head only the weights of its base model count, as only these are run.
    """
    head = model.get_output_embeddings()
    body = model.base_model if head is None else model
    apart = {
        id(weight)
        for module in (*body.modules(), head)
        if module is head or isinstance(module, torch.nn.Embedding)
        for weight in ([] if module is None else module.parameters(recurse=False))
    }
    weights = {
        name: weight.numel()
        for name, weight in body.named_parameters()
        if weight.dim() >= 2 and id(weight) not in apart
    }
    quantised = {
        name: module
        for name, module in body.named_modules()
        if isinstance(module, Quantised) and not isinstance(module, QuantisedEmbedding)
    }
    weights |= {name: prod(weight_shape(m)) for name, m in quantised.items() if m is not head}
    weights |= {
        f"{name}.{leaf}": prod(part.shape)
        for name, module in body.named_modules()
        if isinstance(module, Packed) and module is not head and not isinstance(module, PackedEmbedding)
        for leaf, part in module.parts.items()
    }
    experts = sum(size for name, size in weights.items() if ".experts." in name)
    config = model.config.get_text_config(decoder=True)
    vocab, hidden = (0, config.hidden_size) if head is None else weight_shape(head)
    total = sum(weights.values()) + vocab * hidden
    floats = total - sum(prod(weight_shape(m)) for m in quantised.values())
    size = floats * model.dtype.itemsize + sum(m.panels.nbytes for m in quantised.values())
    return ModelShape(
        num_layers=kv.num_layers,
        num_q_heads=kv.num_q_heads,
        num_kv_heads=kv.num_kv_heads,
        head_dim=kv.head_dim,
        hidden=hidden,
        vocab=vocab,
        active_parameters=total - experts + round(experts * _share_of_experts(config)),
        parameters=total,
        weight_bytes=size / total,
        kv_bytes=model.dtype.itemsize,
    )


def shape_of_config(config: Any, dtype: torch.dtype) -> ModelShape:
    """Returns the shape of a model with this config; no weight is read or made.

    Raises:
        UnsupportedModelError: the config names a feature that the tree attention path does not support.
        ValueError: transformers has no causal language model for it.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    refuse_config(model)
    with refusing(model):
        text = model.config.get_text_config(decoder=True)
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        kv = KVShape(
            text.num_hidden_layers,
            heads,
            getattr(text, "num_key_value_heads", None) or heads,
            stored_head_dim(max(head_dim, getattr(text, "v_head_dim", None) or 0)),
        )
        return shape_of_model(model, kv)


def _share_of_experts(config: Any) -> float:
    """Returns the share of a mixture's experts that one token goes through."""
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if experts := getattr(config, name, None):
            return float(config.num_experts_per_tok / experts)
    return 1.0
