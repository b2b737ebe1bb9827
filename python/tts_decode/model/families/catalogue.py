"""The families themselves. docs/add-a-family.md describes how to add one."""

from __future__ import annotations

from typing import Any

from .declaration import Family

_BIASES = ("attention_bias", "mlp_bias")
_WINDOWS = ("sliding_window", "layer_types")
_POST_NORMS: dict[str, Any] = {
    "input_norm": None,
    "out_norm": "post_attention_layernorm",
    "mlp_norm": None,
    "mlp_out_norm": "post_feedforward_layernorm",
}
_SANDWICH: dict[str, Any] = {
    "out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}
_HEAD_NORMS = ("q_norm", "k_norm")
_GEMMA: dict[str, Any] = {"norm": "rms_plus_one"}
_GEMMA_OPTIONS = (
    "attention_bias",
    "use_bidirectional_attention",
    *_WINDOWS,
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
_GRANITE: dict[str, Any] = {
    "factor": "residual_multiplier",
    "embedding_factor": "embedding_multiplier",
    "logit_divisor": "config.logits_scaling",
}
_GRANITE_OPTIONS = (
    *_BIASES,
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
)
_MIXTURE = ("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef")
_QWEN_MIXTURE = (
    *(*_MIXTURE, "num_experts", "norm_topk_prob", "moe_intermediate_size"),
    *("sliding_window", "use_sliding_window", "decoder_sparse_step", "mlp_only_layers"),
)
_FUSED_MLP: dict[str, Any] = {"gate_up": ("gate_up_proj",), "activation": "activation_fn"}

_DECLARED = (
    Family("LlamaModel", (*_BIASES, "pretraining_tp")),
    Family("MistralModel", ("sliding_window",), wrappers=("Mistral3ForConditionalGeneration",)),
    Family("MinistralModel", _WINDOWS),
    Family("Qwen2Model", (*_WINDOWS, "use_sliding_window", "max_window_layers")),
    Family(
        "Qwen3Model",
        ("attention_bias", *_WINDOWS, "use_sliding_window", "max_window_layers"),
        head_norms=_HEAD_NORMS,
    ),
    Family("GemmaModel", ("attention_bias", "use_bidirectional_attention"), **_GEMMA),
    Family(
        "Gemma2Model",
        _GEMMA_OPTIONS,
        **_GEMMA,
        **_SANDWICH,
        logit_soft_cap="config.final_logit_softcapping",
    ),
    Family(
        "Gemma3TextModel",
        (*_GEMMA_OPTIONS, "_sliding_window_pattern"),
        wrappers=("Gemma3ForConditionalGeneration",),
        **_GEMMA,
        **_SANDWICH,
        head_norms=_HEAD_NORMS,
        rotary_by="layer_type",
        logit_soft_cap="config.final_logit_softcapping",
    ),
    Family(
        "Phi3Model",
        ("sliding_window", "original_max_position_embeddings", "resid_pdrop", "embd_pdrop"),
        qkv=("qkv_proj",),
        **_FUSED_MLP,
    ),
    Family("Olmo2Model", ("attention_bias",), **_POST_NORMS, head_norms=_HEAD_NORMS),
    Family(
        "Olmo3Model",
        ("attention_bias", *_WINDOWS),
        **_POST_NORMS,
        head_norms=_HEAD_NORMS,
        rotary_by="layer_type",
    ),
    Family(
        "Exaone4Model",
        (*_WINDOWS, "sliding_window_pattern"),
        **_POST_NORMS,
        head_norms=_HEAD_NORMS,
        rotates=lambda attention: attention.sliding_window is None or attention.is_sliding,
    ),
    Family("GraniteModel", _GRANITE_OPTIONS, **_GRANITE),
    Family(
        "GraniteSWAModel",
        (*_GRANITE_OPTIONS, *_WINDOWS, "layer_rope_theta"),
        **_GRANITE,
        sinks="sinks",
        rotates=lambda attention: attention.config.layer_rope_theta[attention.layer_idx] > 0,
        rotary_by="theta",
    ),
    Family(
        "SmolLM3Model",
        (*_BIASES, *_WINDOWS, "use_sliding_window", "no_rope_layers", "no_rope_layer_interval"),
        rotates=lambda attention: bool(attention.use_rope),
    ),
    Family(
        "CohereModel",
        ("attention_bias", "logit_scale", "use_qk_norm"),
        norm="layer",
        mlp_norm=None,
        rotary_pairs=True,
        angles="in_pairs",
        parallel=True,
        logit_factor="logit_scale",
    ),
    Family(
        "Cohere2Model",
        ("attention_bias", *_WINDOWS, "logit_scale"),
        norm="layer",
        mlp_norm=None,
        rotates=lambda attention: attention.sliding_window is not None,
        rotary_pairs=True,
        angles="in_pairs",
        parallel=True,
        logit_factor="logit_scale",
    ),
    Family("GlmModel", ("attention_bias",), **_FUSED_MLP, rotary_pairs=True),
    Family(
        "Glm4Model",
        ("attention_bias",),
        out_norm="post_self_attn_layernorm",
        mlp_out_norm="post_mlp_layernorm",
        **_FUSED_MLP,
        rotary_pairs=True,
    ),
    Family(
        "StableLmModel",
        ("hidden_dropout", "qk_layernorm", "use_parallel_residual", "use_qkv_bias"),
        norm="layer",
        parallel="use_parallel_residual",
    ),
    Family(
        "Starcoder2Model",
        ("sliding_window", "use_bias", "embedding_dropout", "residual_dropout"),
        norm="layer",
        gate_up=("c_fc",),
        gated=False,
        down="c_proj",
        activation="act",
    ),
    Family("ArceeModel", _BIASES, gate_up=("up_proj",), gated=False),
    Family(
        "NemotronModel",
        (*_BIASES, "norm_eps"),
        norm="layer_plus_one",
        gate_up=("up_proj",),
        gated=False,
    ),
    Family(
        "MixtralModel",
        (*_MIXTURE, "sliding_window", "num_local_experts", "router_jitter_noise"),
        normalises_experts=True,
    ),
    Family(
        "Qwen2MoeModel",
        (
            *(*_QWEN_MIXTURE, "shared_expert_intermediate_size", "qkv_bias"),
            *("layer_types", "max_window_layers"),
        ),
        normalises_experts="norm_topk_prob",
        shared_expert="shared_expert",
        shared_gate="shared_expert_gate",
    ),
    Family(
        "Qwen3MoeModel",
        (*_QWEN_MIXTURE, "attention_bias"),
        head_norms=_HEAD_NORMS,
        normalises_experts="norm_topk_prob",
    ),
    Family(
        "GptOssModel",
        (
            *(*_MIXTURE, "num_local_experts", "swiglu_alpha", "swiglu_limit"),
            *("attention_bias", *_WINDOWS),
        ),
        angles="once",
        sinks="sinks",
        router="router",
        clamped_experts=True,
        normalises_experts=True,
    ),
    Family(
        "OlmoeModel",
        (*_MIXTURE, "num_experts", "norm_topk_prob", "attention_bias"),
        head_norms=_HEAD_NORMS,
        normalises_experts="norm_topk_prob",
    ),
)
FAMILIES = {family.base: family for family in _DECLARED}


def family_of(base: Any) -> Family:
    """Returns the declaration of a base model that passes `why_general`."""
    return FAMILIES[type(base).__name__]
