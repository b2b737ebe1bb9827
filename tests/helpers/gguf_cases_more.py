"""Continues `gguf_cases.py`: architectures that transformers does not read from GGUF."""

from __future__ import annotations

from gguf_cases import (
    FREQ,
    HEAD_DIM,
    LAYER,
    LAYERS,
    RMS,
    THETA,
    WIDE,
    WIDE_KEYS,
    Case,
    llama3_factors,
)

_YARN = {
    **THETA,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
_LLAMA3 = {
    **THETA,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_FACTORS = {"rope_freqs.weight": llama3_factors(5000.0, 8.0, 1.0, 4.0, 64)}
_PLAIN = {"rms_norm_eps": 1e-3, "rope_parameters": THETA}
_PLAIN_KEYS = {RMS: 1e-3, **FREQ}
_COHERE = {
    "layer_norm_eps": 1e-3,
    "rope_parameters": THETA,
    "logit_scale": 0.3,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
_COHERE_KEYS = {LAYER: 1e-3, **FREQ, "rope.scaling.type": "none", "logit_scale": 0.3}

CASES = {
    "olmoe": Case(
        "olmoe",
        "olmoe",
        {**_PLAIN, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False, "pad_token_id": 0},
        {**_PLAIN_KEYS, "expert_count": 4, "expert_used_count": 2},
    ),
    "mixtral": Case(
        "llama",
        "mixtral",
        {"rms_norm_eps": 1e-3, "rope_parameters": THETA, "num_local_experts": 4, "num_experts_per_tok": 2},
        {RMS: 1e-3, **FREQ, "expert_count": 4, "expert_used_count": 2},
    ),
    "gpt-oss": Case(
        "gpt-oss",
        "gpt_oss",
        {
            "rms_norm_eps": 1e-3,
            "head_dim": HEAD_DIM,
            "rope_parameters": {**_YARN, "truncate": True},
            "sliding_window": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        {
            **_PLAIN_KEYS,
            **_YARN_KEYS,
            "attention.sliding_window": 16,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 96,
        },
    ),
    "olmo2": Case("olmo2", "olmo2", {**_PLAIN, "pad_token_id": 0}, _PLAIN_KEYS),
    "olmo3": Case(
        "olmo2",
        "olmo3",
        {
            "rms_norm_eps": 1e-3,
            "pad_token_id": 0,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": _YARN, "sliding_attention": THETA},
        },
        {
            **_PLAIN_KEYS,
            **_YARN_KEYS,
            "rope.freq_base_swa": 5000.0,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": [True, False, True],
        },
    ),
    "olmo3-period": Case(
        "olmo2",
        "olmo3",
        {
            "rms_norm_eps": 1e-3,
            "pad_token_id": 0,
            "num_hidden_layers": 5,
            "sliding_window": 16,
            "rope_parameters": {"full_attention": THETA, "sliding_attention": THETA},
        },
        {**_PLAIN_KEYS, "attention.sliding_window": 16, "block_count": 5},
    ),
    "granite": Case(
        "granite",
        "granite",
        {
            **_PLAIN,
            "attention_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.3,
            "logits_scaling": 1.7,
            "tie_word_embeddings": True,
        },
        {
            **_PLAIN_KEYS,
            "rope.dimension_count": HEAD_DIM,
            "embedding_scale": 3.0,
            "residual_scale": 0.6,
            "attention.scale": 0.3,
            "logit_scale": 1.7,
        },
    ),
    "granite-plain": Case(
        "granite",
        "granite",
        {"rms_norm_eps": 1e-3, "rope_parameters": _LLAMA3, "attention_multiplier": HEAD_DIM**-0.5},
        {**_PLAIN_KEYS, "logit_scale": 1.0, "rope.scaling.finetuned": True},
        _FACTORS,
    ),
    "smollm3": Case(
        "smollm3",
        "smollm3",
        {**_PLAIN, "num_hidden_layers": 5, "pad_token_id": 0, "attention_bias": True},
        {**_PLAIN_KEYS, "block_count": 5, "rope.dimension_count": HEAD_DIM},
    ),
    "command-r": Case("command-r", "cohere", _COHERE, _COHERE_KEYS),
    "command-r-norms": Case(
        "command-r", "cohere", {**_COHERE, "use_qk_norm": True, "attention_bias": True}, _COHERE_KEYS
    ),
    "cohere2": Case(
        "cohere2",
        "cohere2",
        {**_COHERE, "num_hidden_layers": 5, "sliding_window": 16},
        {
            **_COHERE_KEYS,
            "block_count": 5,
            "rope.dimension_count": HEAD_DIM,
            "attention.sliding_window": 16,
        },
    ),
    "glm4": Case(
        "glm4",
        "glm4",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": {**THETA, "partial_rotary_factor": 0.5},
            "attention_bias": True,
            "pad_token_id": 0,
            **WIDE,
        },
        {**_PLAIN_KEYS, **WIDE_KEYS, "rope.dimension_count": 24},
    ),
    "exaone4": Case(
        "exaone4",
        "exaone4",
        {
            "rms_norm_eps": 1e-3,
            "rope_parameters": _LLAMA3,
            "sliding_window": None,
            "layer_types": ["full_attention"] * LAYERS,
        },
        _PLAIN_KEYS,
        _FACTORS,
    ),
    "exaone4-windows": Case(
        "exaone4",
        "exaone4",
        {**_PLAIN, "num_hidden_layers": 64, "sliding_window": 16},
        {**_PLAIN_KEYS, "block_count": 64, "attention.sliding_window": 16},
    ),
    "gemma": Case(
        "gemma",
        "gemma",
        {"rms_norm_eps": 1e-3, **WIDE, "tie_word_embeddings": True, "pad_token_id": 0},
        {RMS: 1e-3, "attention.key_length": 48, "attention.value_length": 48},
    ),
    "mistral3": Case(
        "mistral3",
        "mistral",
        {**_PLAIN, **WIDE, "sliding_window": None},
        {**_PLAIN_KEYS, **WIDE_KEYS},
    ),
}
