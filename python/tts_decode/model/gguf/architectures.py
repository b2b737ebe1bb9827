"""The supported architectures of GGUF files: how each becomes a model of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .keys import Architecture

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
}
_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_FREQUENCIES = "rope_freqs.weight"
_LAYER = {"attention.layer_norm_epsilon": "layer_norm_eps"}
_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
_LONG_AND_SHORT = frozenset({"rope_factors_long.weight", "rope_factors_short.weight"})

_WINDOWS = frozenset({"attention.sliding_window", "attention.sliding_window_pattern"})

_LLAMA = Architecture(
    "llama",
    _SIZES,
    _RMS,
    rotary_tensors=_LONG_AND_SHORT | {_FREQUENCIES},
    switches=_BIASES,
    layout="paired_heads",
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    # Mistral Small 3 and others of its architecture; those that scale queries by position have a key more.
    "mistral3": Architecture(
        "mistral",
        _SIZES,
        _RMS,
        fixed={"sliding_window": None},
        rotary_tensors=_LONG_AND_SHORT | {_FREQUENCIES},
        layout="paired_heads",
    ),
    "granite": Architecture(
        "granite",
        _SIZES,
        _RMS | {"logit_scale": "logits_scaling"},
        computed=frozenset({"embedding_scale", "residual_scale"}),
        neutral={"rope.scaling.finetuned": True},  # false means no rotation at all
        rotary_tensors=_LONG_AND_SHORT | {_FREQUENCIES},
        switches=_BIASES,
        layout="paired_heads",
    ),
    "smollm3": Architecture(
        "smollm3",
        _SIZES,
        _RMS,
        fixed={"no_rope_layer_interval": 4},
        switches=_BIASES,
        layout="paired_heads",
    ),
    "qwen2": Architecture("qwen2", _SIZES, _RMS),
    "qwen3": Architecture("qwen3", _SIZES, _RMS, switches={"attention_bias": "blk.0.attn_q.bias"}),
    "qwen2moe": Architecture(
        "qwen2_moe",
        _SIZES | _EXPERTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        _RMS,
        fixed={"norm_topk_prob": False},
        neutral={"expert_weights_norm": False, "expert_gating_func": 1},  # 1: softmax
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        _SIZES | _EXPERTS,
        _RMS,
        fixed={"norm_topk_prob": True},
        neutral={"expert_weights_norm": True, "expert_gating_func": 1},
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "olmoe": Architecture(
        "olmoe",
        _SIZES | {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"},
        _RMS,
        fixed={"norm_topk_prob": False},
        neutral={"expert_weights_norm": False, "expert_gating_func": 1},
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        {
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "intermediate_size",
        },
        _RMS,
        computed=_WINDOWS | {"feed_forward_length", "rope.freq_base_swa"},
        neutral={"expert_gating_func": 3},  # softmax over the chosen experts
        layout="transposed_experts",
    ),
    # OLMo 3 if there is a window.
    "olmo2": Architecture("olmo2", _SIZES, _RMS, computed=_WINDOWS | {"rope.freq_base_swa"}),
    "exaone4": Architecture(
        "exaone4",
        _SIZES,
        _RMS,
        computed=_WINDOWS,
        rotary_tensors=frozenset({_FREQUENCIES}),
    ),
    "command-r": Architecture(
        "cohere",
        _SIZES,
        _LAYER | {"logit_scale": "logit_scale"},
        switches={"attention_bias": "blk.0.attn_q.bias", "use_qk_norm": "blk.0.attn_q_norm.weight"},
    ),
    "cohere2": Architecture(
        "cohere2",
        _SIZES | {"attention.sliding_window": "sliding_window"},
        _LAYER | {"logit_scale": "logit_scale"},
        computed=_WINDOWS,
    ),
    "glm4": Architecture(
        "glm4",
        _SIZES,
        _RMS,
        partial_rotary=True,
        switches={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "phi3": Architecture(
        "phi3",
        _SIZES,
        _RMS,
        computed=frozenset({"attention.sliding_window"}),
        partial_rotary=True,
        rotary_tensors=_LONG_AND_SHORT,
    ),
    "gemma": Architecture("gemma", _SIZES, _RMS, layout="raised_norms"),
    "gemma2": Architecture(
        "gemma2",
        _SIZES | {"attention.sliding_window": "sliding_window"},
        _RMS
        | {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        # llama.cpp's default if the file does not say.
        fixed={
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        neutral={"attention.sliding_window_pattern": 2},
        optional=frozenset({"attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}),
        layout="raised_norms",
    ),
    "gemma3": Architecture(
        "gemma3_text",
        _SIZES | {"attention.sliding_window": "sliding_window"},
        _RMS,
        computed=frozenset({"rope.freq_base_swa"}),
        neutral={"attention.sliding_window_pattern": 6},
        layout="raised_norms",
    ),
    "starcoder2": Architecture(
        "starcoder2",
        _SIZES,
        {"attention.layer_norm_epsilon": "norm_epsilon"},
        switches={"use_bias": "blk.0.attn_q.bias"},
    ),
    "stablelm": Architecture(
        "stablelm",
        _SIZES,
        {"attention.layer_norm_epsilon": "layer_norm_eps"},
        computed=frozenset({"use_parallel_residual"}),
        partial_rotary=True,
        switches={"use_qkv_bias": "blk.0.attn_q.bias"},
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
        },
        {"attention.layer_norm_epsilon": "layer_norm_epsilon"},
        rotary=False,
        layout="transposed",
    ),
    "nemotron": Architecture(
        "nemotron",
        _SIZES,
        {"attention.layer_norm_epsilon": "norm_eps"},
        partial_rotary=True,
        layout="raised_norms",
    ),
}

# For files with routers: llama.cpp calls Mixtral by the name of the dense model.
MIXTURES: Mapping[str, Architecture] = {
    "llama": replace(
        _LLAMA,
        model_type="mixtral",
        integers=_SIZES | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        fixed={"sliding_window": None},
        neutral={"expert_weights_norm": True, "expert_gating_func": 1},
        switches={},
    )
}
ROUTER = "blk.0.ffn_gate_inp.weight"
