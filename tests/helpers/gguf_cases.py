"""Random models of the architectures that both we and transformers read from GGUF."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

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


RMS = "attention.layer_norm_rms_epsilon"
LAYER = "attention.layer_norm_epsilon"
THETA = {"rope_type": "default", "rope_theta": 5000.0}
FREQ = {"rope.freq_base": 5000.0}
WIDE = {"head_dim": 48}
WIDE_KEYS = {"attention.key_length": 48, "attention.value_length": 48, "rope.dimension_count": 48}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64}

_SHORT, _LONG = np.float32([1, 1.5, 2, 2, 3, 3.5, 4, 4]), np.float32([1, 2, 4, 8, 9, 12, 16, 20])


def llama3_factors(base: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
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
    "llama": Case("llama", "llama", {"rms_norm_eps": 1e-3, "rope_parameters": THETA}, {RMS: 1e-3, **FREQ}),
    "llama-wide": Case(
        "llama",
        "llama",
        {"rms_norm_eps": 1e-6, "rope_parameters": THETA, **WIDE},
        {RMS: 1e-6, **FREQ, **WIDE_KEYS},
    ),
    "llama-bias": Case(
        "llama",
        "llama",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": THETA,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        {RMS: 1e-3, **FREQ, "attention.scale": 32**-0.5},
    ),
    "llama-linear": Case(
        "llama",
        "llama",
        {"rms_norm_eps": 1e-3, "rope_parameters": {**THETA, "rope_type": "linear", "factor": 4.0}},
        {RMS: 1e-3, **FREQ, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama3": Case(
        "llama",
        "llama",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                **THETA,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {RMS: 1e-3, **FREQ},
        {"rope_freqs.weight": llama3_factors(5000.0, 8.0, 1.0, 4.0, 64)},
    ),
    "qwen2": Case("qwen2", "qwen2", {"rms_norm_eps": 1e-3, "rope_parameters": THETA}, {RMS: 1e-3, **FREQ}),
    "qwen2-yarn": Case(
        "qwen2",
        "qwen2",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                **THETA,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {
            RMS: 1e-3,
            **FREQ,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        },
    ),
    "qwen3": Case(
        "qwen3",
        "qwen3",
        {"rms_norm_eps": 1e-3, "rope_parameters": THETA, **WIDE},
        {RMS: 1e-3, **FREQ, **WIDE_KEYS},
    ),
    "qwen2moe": Case(
        "qwen2moe",
        "qwen2_moe",
        {"rms_norm_eps": 1e-3, "rope_parameters": THETA, **_EXPERTS, "shared_expert_intermediate_size": 80},
        {RMS: 1e-3, **FREQ, **_EXPERT_KEYS, "expert_shared_feed_forward_length": 80},
    ),
    "qwen3moe": Case(
        "qwen3moe",
        "qwen3_moe",
        {"rms_norm_eps": 1e-3, "rope_parameters": THETA, **_EXPERTS, **WIDE, "norm_topk_prob": True},
        {RMS: 1e-3, **FREQ, **_EXPERT_KEYS, **WIDE_KEYS},
    ),
    "phi3": Case(
        "phi3",
        "phi3",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": {**THETA, "partial_rotary_factor": 0.5},
            "sliding_window": 16,
            "pad_token_id": 0,
        },
        {
            RMS: 1e-3,
            **FREQ,
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
                **THETA,
                "rope_type": "longrope",
                "partial_rotary_factor": 0.5,
                "short_factor": _SHORT.tolist(),
                "long_factor": _LONG.tolist(),
                "attention_factor": 1.25,
            },
        },
        {
            RMS: 1e-3,
            **FREQ,
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
            "rope_parameters": THETA,
            **WIDE,
            "sliding_window": 16,
            "pad_token_id": 0,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 48,
            "tie_word_embeddings": True,
        },
        {
            RMS: 1e-3,
            **FREQ,
            **WIDE_KEYS,
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
            **WIDE,
            "sliding_window": 16,
            "query_pre_attn_scalar": 48,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {**THETA, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            },
        },
        {
            RMS: 1e-3,
            **FREQ,
            **WIDE_KEYS,
            "attention.sliding_window": 16,
            "rope.freq_base_swa": 700.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "block_count": 6,
        },
    ),
    "starcoder2": Case(
        "starcoder2", "starcoder2", {"norm_epsilon": 1e-3, "rope_parameters": THETA}, {LAYER: 1e-3, **FREQ}
    ),
    "stablelm": Case(
        "stablelm",
        "stablelm",
        {"layer_norm_eps": 1e-3, "rope_parameters": {**THETA, "partial_rotary_factor": 0.25}},
        {LAYER: 1e-3, **FREQ, "rope.dimension_count": 8, "use_parallel_residual": False},
    ),
    "stablelm-parallel": Case(
        "stablelm",
        "stablelm",
        {
            "layer_norm_eps": 1e-3,
            "rope_parameters": {**THETA, "partial_rotary_factor": 0.5},
            "use_parallel_residual": True,
            "use_qkv_bias": True,
        },
        {LAYER: 1e-3, **FREQ, "rope.dimension_count": 16, "use_parallel_residual": True},
    ),
    "gpt2": Case("gpt2", "gpt2", {"layer_norm_epsilon": 1e-3}, {LAYER: 1e-3}),
    "nemotron": Case(
        "nemotron",
        "nemotron",
        {"norm_eps": 1e-3, "rope_parameters": {**THETA, "partial_rotary_factor": 0.25}},
        {LAYER: 1e-3, **FREQ, "rope.dimension_count": 8},
    ),
}
