"""The names and layouts that transformers' conversion has for the tensors of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .header import Header


def tensor_names(header: Header, model: nn.Module, config: Mapping[str, Any]) -> dict[str, str]:
    """The tensors that transformers reads for a model -> parameters of it, of which two may fill one."""
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    names: dict[str, str] = get_gguf_hf_weights_map(model, processor_of(header, config))
    # The stacked weights of experts have no suffix there.
    return {
        name if name.endswith((".weight", ".bias")) else f"{name}.weight": target
        for name, target in names.items()
    }


def processor_of(header: Header, config: Mapping[str, Any]) -> Any:
    """What undoes the layouts of llama.cpp: `process(weights=, name=).weights`."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    processor: Any = TENSOR_PROCESSORS.get(header.name, TensorProcessor)
    return processor(config=dict(config))
