"""Unsupported features that a model's config and modules show before any forward."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .own_attention import has_only_distances

_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention", "mlp", "moe"}


def unserved_feature(model: Any) -> str | None:
    """Returns a feature of the model that the tree attention path does not support, or None if none shows."""
    config = model.config.get_text_config(decoder=True)
    body = text_body(model)
    for feature, has in _CONFIG_FEATURES.items():
        if has(config):
            return feature
    modules = [body, *body.children(), *_layer_modules(body)]
    for feature, shows in _MODULE_FEATURES.items():
        if any(map(shows, modules)):
            return feature
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if other:
        return f"layers of type {', '.join(other)}"
    given = inspect.signature(type(body).forward).parameters
    if "position_ids" not in given and not has_only_distances(body):
        return "positions that it counts by itself (its forward takes no position_ids)"
    return None


def attention_modules(model: Any) -> list[nn.Module]:
    """Returns the attention modules of the text layers; of nested ones, the innermost."""
    found = [module for module in _layer_modules(text_body(model)) if _is_attention(module)]
    return [m for m in found if not any(_is_attention(part) for part in m.modules() if part is not m)]


def uses_attention_interface(module: nn.Module) -> bool:
    """Whether the code of the module's forward reads transformers' table of attention functions."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _is_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def text_body(model: Any) -> Any:
    """Returns the text decoder, without its head."""
    body = model.get_decoder() if hasattr(model, "get_decoder") else None
    return body if isinstance(body, PreTrainedModel) else model.base_model


def _layer_modules(body: nn.Module) -> Iterator[nn.Module]:
    """Yields all modules in the stacks of layers, which are the module lists nearest to the top."""
    level = [body]
    while level:
        level = [child for module in level for child in module.children()]
        if stacks := [child for child in level if isinstance(child, nn.ModuleList)]:
            yield from (module for stack in stacks for module in stack.modules())
            return


def _setting(config: Any, name: str) -> Any:
    """Returns a field of the config; if the layers differ in it, the field of a layer that sets it."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # configs with per-layer settings have none for all layers
        return next(filter(None, (getattr(layer, name, None) for layer in config.per_layer_config)), None)


def _truthy(*names: str) -> Callable[[Any], bool]:
    return lambda config: any(bool(_setting(config, name)) for name in names)


def _rope(test: Callable[[dict[str, Any]], bool]) -> Callable[[Any], bool]:
    """Whether one of the config's rotary settings (one dict, or one a layer type) passes the test."""

    def passes(config: Any) -> bool:
        rope = getattr(config, "rope_parameters", None) or {}
        nested = [value for value in rope.values() if isinstance(value, dict)]
        return any(test(parameters) for parameters in (nested or [rope]))

    return passes


def _class_is(pattern: str) -> Callable[[nn.Module], bool]:
    return lambda module: re.search(pattern, type(module).__name__) is not None


def _part_is(pattern: str) -> Callable[[nn.Module], bool]:
    """Whether a module has a part or a parameter of such a name."""

    def names(module: nn.Module) -> Iterator[str]:
        yield from (name for name, _ in module.named_children())
        yield from (name for name, _ in module.named_parameters(recurse=False))

    return lambda module: any(re.search(pattern, name) for name in names(module))


def _any(*tests: Callable[[nn.Module], bool]) -> Callable[[nn.Module], bool]:
    return lambda module: any(test(module) for test in tests)


# In order: the first that applies is named.
_CONFIG_FEATURES: dict[str, Callable[[Any], bool]] = {
    "an encoder-decoder (cross-attention)": _truthy("is_encoder_decoder"),
    "cross-attention": _truthy("add_cross_attention", "cross_attention_layers"),
    "multi-head latent attention (MLA)": _truthy("kv_lora_rank"),
    "the KV of another model (it drafts for that one)": lambda config: (
        bool(shared := getattr(config, "num_kv_shared_layers", None)) and shared == config.num_hidden_layers
    ),
    "bidirectional attention": lambda config: (
        getattr(config, "use_bidirectional_attention", None) in (True, "all")
    ),
    "ALiBi positions rounded to bfloat16": _truthy("alibi"),  # of Falcon
    "multi-axis rotary positions (M-RoPE)": _rope(lambda rope: "mrope_section" in rope),
}

# Checked on the text decoder, its parts, and everything in its layers.
_MODULE_FEATURES: dict[str, Callable[[nn.Module], bool]] = {
    "cross-attention": _class_is("CrossAttention"),
    "linear-attention or state-space layers": _any(
        _class_is("Mamba|Rwkv|xLSTM|DeltaNet|DeltaAttention|LightningAttention|Rglru"), _part_is("^A_log$")
    ),
    "convolutions over neighbouring tokens": lambda module: isinstance(module, nn.Conv1d),
    "sparse attention by an indexer": _part_is("^indexer$"),
    "ALiBi positions": lambda module: (
        any(re.match("build_.*alibi", name) for name in dir(module)) and not has_only_distances(module)
    ),
    "relative position biases": _part_is("^rel_|^relative_|_rel_"),
}
