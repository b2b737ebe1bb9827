"""Assembles a transformers model from its config, weights that stay quantised, and float tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tts_kernels import QuantisedWeight

from ..errors import ModelLoadError
from .quantised_experts import QuantisedExperts
from .quantised_modules import Quantised, QuantisedEmbedding, QuantisedLinear


class Kept(NamedTuple):
    """A weight that stays quantised. kind: its file's name for it, for people."""

    weight: QuantisedWeight
    kind: str


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """Makes a model without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def assembled(
    model: Any, weights: Mapping[str, Kept], floats: Mapping[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """Fills a skeleton: weights by the names of their modules, all other tensors by their own.

    dtype: of the rows of a quantised embedding table.

    Raises:
        ModelLoadError: a tensor of the model is missing.
    """
    for name, kept in weights.items():
        path, _, leaf = name.rpartition(".")
        module = getattr(model.get_submodule(path), leaf, None)
        _put(model, name, _module_for(module, kept, dtype))
    for name, module in list(model.named_modules()):
        if isinstance(getattr(module, "gate", None), Quantised):
            _put(model, name, _experts_of(module))
    for name, tensor in floats.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        learned = leaf in dict(module.named_parameters(recurse=False))
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False) if learned else tensor)
    _tie_head(model)
    _fill_buffers(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ModelLoadError(f"model: its file does not fill {name} of {type(model).__name__}")
    model.generation_config = GenerationConfig.from_model_config(model.config)
    return model.eval()  # type: ignore[no-any-return]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, module)


def _module_for(module: Any, kept: Kept, dtype: torch.dtype) -> nn.Module:
    if module is None:  # of all experts of a layer
        return Quantised(*kept)
    if isinstance(module, nn.Embedding):
        scale = getattr(module, "scalar_embed_scale", 1.0)
        return QuantisedEmbedding(kept.weight, dtype, scale, kept.kind)
    return QuantisedLinear(*kept)


def _tie_head(model: Any) -> None:
    if model.config.tie_word_embeddings:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        if isinstance(table, QuantisedEmbedding):
            model.set_output_embeddings(QuantisedLinear(table.quantised, table.kind))
        else:
            head.weight = table.weight


def _experts_of(module: Any) -> QuantisedExperts:
    """Replaces a mixture's experts, which got their quantised weights."""
    weights = module.gate, module.up, module.down
    clamp = (module.alpha, module.limit) if hasattr(module, "alpha") else None  # gpt-oss
    return QuantisedExperts(weights, module.num_experts, getattr(module, "act_fn", None), clamp)


def _fill_buffers(model: Any) -> None:
    """Fills buffers that the model computes itself: rotary frequencies, and factors of embeddings."""
    for name, module in list(model.named_modules()):
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale)
        else:
            _put(model, name, type(module)(module.config))
