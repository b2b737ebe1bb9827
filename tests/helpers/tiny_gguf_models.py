"""Random transformers models of every architecture that is read from GGUF, and their files.

The files are written as llama.cpp's convert_hf_to_gguf.py writes them: its keys, names and layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_gguf import TOKENIZER, TOKENS, gguf, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CONTEXT, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 256, 3, 4, 2, 32


@dataclass(frozen=True)
class Case:
    """config: arguments of the transformers config. keys: of the file, without their namespace.

    tensors: of the file, besides the weights.
    """

    architecture: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


_RMS = "attention.layer_norm_rms_epsilon"
_LAYER = "attention.layer_norm_epsilon"
_THETA = {"rope_type": "default", "rope_theta": 5000.0}
_FREQ = {"rope.freq_base": 5000.0}
_WIDE = {"head_dim": 48}
_WIDE_KEYS = {"attention.key_length": 48, "attention.value_length": 48, "rope.dimension_count": 48}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64}

_SHORT, _LONG = np.float32([1, 1.5, 2, 2, 3, 3.5, 4, 4]), np.float32([1, 2, 4, 8, 9, 12, 16, 20])


def _llama3_factors(base: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """What convert_hf_to_gguf.py writes as rope_freqs for `rope_type` llama3."""
    factors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * np.pi * base ** (i / HEAD_DIM)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.float32(factors)


CASES = {
    "llama": Case("llama", "llama", {"rms_norm_eps": 1e-3, "rope_parameters": _THETA}, {_RMS: 1e-3, **_FREQ}),
    "llama-wide": Case(
        "llama",
        "llama",
        {"rms_norm_eps": 1e-6, "rope_parameters": _THETA, **_WIDE},
        {_RMS: 1e-6, **_FREQ, **_WIDE_KEYS},
    ),
    "llama-bias": Case(
        "llama",
        "llama",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": _THETA,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        {_RMS: 1e-3, **_FREQ, "attention.scale": 32**-0.5},
    ),
    "llama-linear": Case(
        "llama",
        "llama",
        {"rms_norm_eps": 1e-3, "rope_parameters": {**_THETA, "rope_type": "linear", "factor": 4.0}},
        {_RMS: 1e-3, **_FREQ, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama3": Case(
        "llama",
        "llama",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                **_THETA,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {_RMS: 1e-3, **_FREQ},
        {"rope_freqs.weight": _llama3_factors(5000.0, 8.0, 1.0, 4.0, 64)},
    ),
    "qwen2": Case("qwen2", "qwen2", {"rms_norm_eps": 1e-3, "rope_parameters": _THETA}, {_RMS: 1e-3, **_FREQ}),
    "qwen2-yarn": Case(
        "qwen2",
        "qwen2",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                **_THETA,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {
            _RMS: 1e-3,
            **_FREQ,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        },
    ),
    "qwen3": Case(
        "qwen3",
        "qwen3",
        {"rms_norm_eps": 1e-3, "rope_parameters": _THETA, **_WIDE},
        {_RMS: 1e-3, **_FREQ, **_WIDE_KEYS},
    ),
    "qwen2moe": Case(
        "qwen2moe",
        "qwen2_moe",
        {"rms_norm_eps": 1e-3, "rope_parameters": _THETA, **_EXPERTS, "shared_expert_intermediate_size": 80},
        {_RMS: 1e-3, **_FREQ, **_EXPERT_KEYS, "expert_shared_feed_forward_length": 80},
    ),
    "qwen3moe": Case(
        "qwen3moe",
        "qwen3_moe",
        {"rms_norm_eps": 1e-3, "rope_parameters": _THETA, **_EXPERTS, **_WIDE, "norm_topk_prob": True},
        {_RMS: 1e-3, **_FREQ, **_EXPERT_KEYS, **_WIDE_KEYS},
    ),
    "phi3": Case(
        "phi3",
        "phi3",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": {**_THETA, "partial_rotary_factor": 0.5},
            "sliding_window": 16,
            "pad_token_id": 0,
        },
        {
            _RMS: 1e-3,
            **_FREQ,
            "rope.dimension_count": 16,
            "attention.sliding_window": 16,
            "rope.scaling.original_context_length": CONTEXT,
        },
    ),
    "phi3-longrope": Case(
        "phi3",
        "phi3",
        {
            "rms_norm_eps": 1e-3,
            "pad_token_id": 0,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                **_THETA,
                "rope_type": "longrope",
                "partial_rotary_factor": 0.5,
                "short_factor": _SHORT.tolist(),
                "long_factor": _LONG.tolist(),
                "attention_factor": 1.25,
            },
        },
        {
            _RMS: 1e-3,
            **_FREQ,
            "rope.dimension_count": 16,
            "attention.sliding_window": 0,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 1.25,
        },
        {"rope_factors_short.weight": _SHORT, "rope_factors_long.weight": _LONG},
    ),
    "gemma2": Case(
        "gemma2",
        "gemma2",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": _THETA,
            **_WIDE,
            "sliding_window": 16,
            "pad_token_id": 0,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 48,
            "tie_word_embeddings": True,
        },
        {
            _RMS: 1e-3,
            **_FREQ,
            **_WIDE_KEYS,
            "attention.sliding_window": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": Case(
        "gemma3",
        "gemma3_text",
        {
            "rms_norm_eps": 1e-3,
            **_WIDE,
            "sliding_window": 16,
            "query_pre_attn_scalar": 48,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {**_THETA, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            },
        },
        {
            _RMS: 1e-3,
            **_FREQ,
            **_WIDE_KEYS,
            "attention.sliding_window": 16,
            "rope.freq_base_swa": 700.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "block_count": 6,
        },
    ),
    "starcoder2": Case(
        "starcoder2", "starcoder2", {"norm_epsilon": 1e-3, "rope_parameters": _THETA}, {_LAYER: 1e-3, **_FREQ}
    ),
    "stablelm": Case(
        "stablelm",
        "stablelm",
        {"layer_norm_eps": 1e-3, "rope_parameters": {**_THETA, "partial_rotary_factor": 0.25}},
        {_LAYER: 1e-3, **_FREQ, "rope.dimension_count": 8, "use_parallel_residual": False},
    ),
    "stablelm-parallel": Case(
        "stablelm",
        "stablelm",
        {
            "layer_norm_eps": 1e-3,
            "rope_parameters": {**_THETA, "partial_rotary_factor": 0.5},
            "use_parallel_residual": True,
            "use_qkv_bias": True,
        },
        {_LAYER: 1e-3, **_FREQ, "rope.dimension_count": 16, "use_parallel_residual": True},
    ),
    "gpt2": Case("gpt2", "gpt2", {"layer_norm_epsilon": 1e-3}, {_LAYER: 1e-3}),
    "nemotron": Case(
        "nemotron",
        "nemotron",
        {"norm_eps": 1e-3, "rope_parameters": {**_THETA, "partial_rotary_factor": 0.25}},
        {_LAYER: 1e-3, **_FREQ, "rope.dimension_count": 8},
    ),
}


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
        halves = values.reshape(-1, 2, config.head_dim // 2, *values.shape[1:])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return {name: values}


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


def _gpt2(name: str, values: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    transposed = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    return {name: values.T if transposed else values}


_ADAPT: dict[str, Callable[[str, np.ndarray, Any], dict[str, np.ndarray]]] = {
    "llama": _llama,
    "gemma2": _offset_norms,
    "gemma3": _offset_norms,
    "nemotron": _nemotron,
    "qwen2moe": _experts,
    "qwen3moe": _experts,
    "gpt2": _gpt2,
}
