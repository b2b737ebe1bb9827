"""Maps the tensors of a GGUF file to the parameters of a transformers model."""

from __future__ import annotations

from typing import Any

from .header import Header

_SUFFIXES = (".weight", ".bias")
# Parameters whose names differ from the modules that llama.cpp's tables know.
_RENAMED = {
    "experts.gate_up_proj": ("experts.gate_proj.weight", "experts.up_proj.weight"),
    "experts.gate_up_proj_bias": ("experts.gate_proj.bias", "experts.up_proj.bias"),
    "experts.down_proj": ("experts.down_proj.weight",),
    "experts.down_proj_bias": ("experts.down_proj.bias",),
    "self_attn.sinks": ("self_attn.sinks.weight",),
}


def tensor_names(header: Header, model: Any) -> dict[str, str]:
    """Returns tensor -> parameter for all tensors that a model reads; two tensors may fill one parameter.

    The names come from the package gguf, which llama.cpp's converter uses too.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architectures = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
    table = get_tensor_name_map(architectures[header.name], model.config.num_hidden_layers)
    names = {}
    for parameter in model.state_dict():
        for name in _parts_of(parameter):
            if tensor := table.get_name(name, try_suffixes=_SUFFIXES):
                names[tensor] = parameter
    return names


def _parts_of(parameter: str) -> tuple[str, ...]:
    for end, names in _RENAMED.items():
        if parameter.endswith(end):
            stem = parameter.removesuffix(end)
            return tuple(f"{stem}{name}" for name in names)
    return (parameter,)
