"""Random transformers models of every architecture that is read from GGUF, and their files.

The files are written as llama.cpp's convert_hf_to_gguf.py writes them: its keys, names and layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf_cases import CASES as _CASES
from gguf_cases import CONTEXT, HEAD_DIM, HEADS, KV_HEADS, LAYERS, Case
from gguf_cases_more import CASES as _MORE
from tiny_gguf import TOKENIZER, TOKENS, gguf, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CASES = {**_CASES, **_MORE}


def random_model(case: Case, seed: int = 0) -> PreTrainedModel:
    """float32; every weight, those of norms and biases too, is random."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        case.model_type,
        **{
            "vocab_size": len(TOKENS),
            "hidden_size": HEADS * HEAD_DIM,
            "intermediate_size": 96,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **case.config,
        },
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def write_model(
    path: Path, case: Case, model: PreTrainedModel, keys: dict[str, Any] | None = None, kind: str = "F32"
) -> None:
    """keys: more of them, with their namespaces. kind: of the matrices."""
    shape = {
        "context_length": CONTEXT,
        "embedding_length": HEADS * HEAD_DIM,
        "feed_forward_length": 96 if case.architecture != "gpt2" else 4 * HEADS * HEAD_DIM,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS if case.architecture != "gpt2" else HEADS,
    }
    named = {f"{case.architecture}.{key}": value for key, value in (shape | case.keys).items()}
    tensors = _tensors(case.architecture, model) | case.tensors
    write_gguf(path, case.architecture, named | TOKENIZER | (keys or {}), tensors, kind)


def _tensors(architecture: str, model: PreTrainedModel) -> dict[str, np.ndarray]:
    (arch,) = [arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    adapt = _ADAPT.get(architecture, lambda name, values, config: {name: values})
    tensors: dict[str, np.ndarray] = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        for part, values in adapt(name, weight.numpy(), model.config).items():
            target = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert target is not None, part
            tensors[target] = values
    return tensors


def _llama(name: str, values: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    """Rows j and j + d/2 of a head of Q and K become rows 2j and 2j + 1."""
    if ".q_proj." in name or ".k_proj." in name:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return {name: values}


def _mixtral(name: str, values: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    return _experts(name, _llama(name, values, config)[name], config)


def _offset_norms(name: str, values: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    """Norms that multiply with 1 + w are stored as 1 + w."""
    return {name: values + 1 if name.endswith("norm.weight") else values}


def _nemotron(name: str, values: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    return {name: values + 1 if name.endswith(("norm.weight", "layernorm.weight")) else values}


def _experts(name: str, values: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    """Gate and up of the experts are two tensors; a tensor has no dimension of length 1."""
    values = values.squeeze()
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(values, 2, axis=1)
        stem = name.removesuffix("gate_up_proj")
        return {f"{stem}gate_proj.weight": gate, f"{stem}up_proj.weight": up}
    if name.endswith("experts.down_proj"):
        return {f"{name}.weight": values}
    return {name: values}


def _gpt_oss(name: str, values: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    """Of the experts [inputs, outputs] become [outputs, inputs], and columns that alternate two tensors."""
    if name.endswith("sinks"):
        return {f"{name}.weight": values}
    if ".experts." not in name:
        return {name: values}
    leaf = "bias" if name.endswith("_bias") else "weight"
    values = values if leaf == "bias" else values.swapaxes(1, 2)
    stem = name.removesuffix("_bias")
    if stem.endswith("down_proj"):
        return {f"{stem}.{leaf}": values}
    stem = stem.removesuffix("gate_up_proj")
    return {f"{stem}gate_proj.{leaf}": values[:, ::2], f"{stem}up_proj.{leaf}": values[:, 1::2]}


def _gpt2(name: str, values: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    transposed = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    return {name: values.T if transposed else values}


_ADAPT: dict[str, Callable[[str, np.ndarray, Any], dict[str, np.ndarray]]] = {
    "llama": _mixtral,
    "mistral3": _llama,
    "granite": _llama,
    "smollm3": _llama,
    "gemma": _offset_norms,
    "gemma2": _offset_norms,
    "gemma3": _offset_norms,
    "nemotron": _nemotron,
    "qwen2moe": _experts,
    "qwen3moe": _experts,
    "olmoe": _experts,
    "gpt-oss": _gpt_oss,
    "gpt2": _gpt2,
}
