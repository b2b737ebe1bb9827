"""A tiny random model of every causal language model class that transformers has.

Sizes are set by the names of a config's fields, so that a new class usually needs no change here. Layers are
the first of each kind in the default config (full and sliding attention, dense and sparse MLP). Every
parameter is random, including norms and biases: a parameter at its initial 0 or 1 would hide a fault.

One type needs more than transformers: the vision tower of `gemma3n` needs timm (`gemma3n_text` does not).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

VOCAB = 260
BOS, PAD, EOS = 0, 1, 2
WINDOW = 9  # tokens, of every sliding-window layer
_MAX_LAYERS = 4


def _named(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


# Of every config that has such a field. 4 heads of queries, 2 of keys and values, head_dim 32.
_SIZES: dict[str, Any] = {
    **_named(
        VOCAB, "vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size", "ngram_vocab_size_base"
    ),
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    **_named(512, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
    **_named(512, "model_max_length", "max_target_positions"),
    **_named(128, "hidden_size", "d_model", "n_embd", "emb_dim", "word_embed_proj_dim", "embedding_size"),
    **_named(
        128,
        "attention_hidden_size",
        "input_embedding_size",
        "output_embedding_size",
        "lru_width",
        "hidden_size_global",
        "adapter_in_dim",
    ),
    **_named(128, "adapter_input_size", "mm_embed_dim", "adapter_out_dim", "output_proj_dims"),
    **_named(4, "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_heads"),
    **_named(4, "decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads"),
    **_named(4, "num_encoder_attention_heads", "linear_num_value_heads", "linear_num_heads", "mamba_n_heads"),
    **_named(4, "swa_num_attention_heads", "mamba_num_heads"),
    **_named(2, "num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads"),
    **_named(32, "head_dim", "kv_channels", "attention_head_size", "swa_head_dim", "dim_head", "d_head"),
    **_named(32, "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "index_head_dim"),
    **_named(96, "intermediate_size", "ffn_dim", "ffn_hidden_size", "dff", "dim_ff", "d_inner"),
    **_named(96, "decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size", "intermediate_size_mlp"),
    **_named(96, "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"),
    **_named(96, "shared_experts_intermediate_size", "expert_ffn_hidden_size", "dense_intermediate_size"),
    **_named(96, "moe_shared_expert_intermediate_size"),
    **_named(4, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
    **_named(2, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"),
    **_named(1, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "zero_expert_num"),
    **_named(2, "n_group", "num_expert_group"),
    **_named(1, "topk_group", "num_nextn_predict_layers"),
    **_named(16, "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
    **_named(WINDOW, "sliding_window", "sliding_window_size", "attention_window_size", "window_size"),
    "local_attention": 2 * WINDOW,  # ModernBERT's counts both sides
    "attention_chunk_size": 16,
    **_named(16, "index_topk", "mamba_d_state", "state_size", "ssm_state_size", "time_step_rank"),
    **_named(4, "index_n_heads"),
    "is_decoder": True,
    **_named(512, "encoder_hash_byte_group_vocab", "mm_posemb_size", "audio_samples_per_token"),
}

_HYBRID = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_FIRST_ATTENTION = {"num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 1}
_CONV = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
_GEMMA4 = {"global_head_dim": 512, "hidden_size_per_layer_input": 16}
_ASSISTANT = {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 32,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}

# What the names above do not settle, by model type.
_SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 16},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 2.0},
    },
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "deepseek_v4": {"o_lora_rank": 32, "o_groups": 2},
    "dory": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention"] * 3,
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
    },
    "gemma3n_text": {"num_kv_shared_layers": 1, "num_hidden_layers": 4}
    | {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 8,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "gpt_neo": {
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
    },
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": _HYBRID,
    "jamba": _FIRST_ATTENTION,
    "lfm2": _CONV | {"full_attn_idxs": [1]},
    "lfm2_moe": _CONV,
    "longcat_flash": {"head_dim": 16},
    "mamba2": {"num_heads": 8},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "n_groups": 2},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {"pronunciation_embed_dim": 16, "shape_embed_dim": 16, "shape_vocab_size": VOCAB},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_hidden_size": 256,
    },
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_model(
    model_type: str, *, seed: int = 0, options: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The model in float32, evaluating, on the CPU.

    options: fields of the config (of its text part, where it has one) in place of those chosen here.
    Raises whatever the model's class raises that cannot be made so small.
    """
    config = tiny_config(model_type, options)
    torch.manual_seed(seed)
    if hasattr(config, "decoder"):  # of music generators, whose classes take this part of their config
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config.decoder)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    randomise(model)
    return model


def tiny_config(model_type: str, options: Mapping[str, Any] | None = None) -> Any:
    return _tiny_config(CONFIG_MAPPING[model_type], dict(options or {}))


def _tiny_config(cls: type[Any], options: Mapping[str, Any]) -> Any:
    """options: fields of the text part, where the config has one, else of the config itself."""
    special = dict(_SPECIAL.get(cls.model_type, {}))
    parts = {name: special.pop(name, {}) for name in cls.sub_configs}
    if "text_config" in parts:
        parts["text_config"] = parts["text_config"] | options
        options = {}
    made = {}
    for name, of_part in parts.items():
        kind = cls.sub_configs[name]
        if kind is AutoConfig:
            kind = CONFIG_MAPPING[cls.sub_configs_defaults[name].model_type]
        if dataclasses.is_dataclass(kind):
            made[name] = _tiny_config(kind, of_part)
    names = {field.name for field in dataclasses.fields(cls) if field.init}
    default = cls(**made)
    chosen = {name: value for name, value in _SIZES.items() if _fits(default, name, names)}
    if "kv_lora_rank" in names:
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
    return cls(**(made | chosen | _tiny_layers(default, names) | special | dict(options)))


def _fits(default: Any, name: str, names: set[str]) -> bool:
    """Whether the config has the field and holds one number in it; where it has none, none is chosen."""
    value = _value(default, name)
    return name in names and (value is None or isinstance(value, int | float))


def _value(config: Any, name: str) -> Any:
    """None where a config has no single value, as its layers differ in it."""
    try:
        return getattr(config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return None


def _tiny_layers(default: Any, names: set[str]) -> dict[str, Any]:
    """The number of layers, and of each list with an item a layer those of the layers kept."""
    field = next((name for name in _LAYERS if name in names), None)
    if field is None:
        return {}
    count = getattr(default, field)
    lists = {
        name: value
        for name in names
        if isinstance(value := _value(default, name), list | tuple) and len(value) == count
    }
    kinds = list(zip(*lists.values(), strict=True)) if lists else [()] * count
    kept = sorted({kinds.index(kind): None for kind in kinds})[:_MAX_LAYERS]
    kept = sorted(kept + [layer for layer in range(count) if layer not in kept][: max(0, 2 - len(kept))])
    chosen = {name: [value[layer] for layer in kept] for name, value in lists.items()}
    return chosen | {name: len(kept) for name in _LAYERS if name in names}


_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "num_blocks",
)


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    """Matrices roughly keep the size of what they multiply; all else moves by a fifth of what it was."""
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=1.3 * parameter[0].numel() ** -0.5)
    persistent = model.state_dict().keys()
    buffers = [b for name, b in model.named_buffers() if name in persistent and b.is_floating_point()]
    for tensor in (*model.parameters(), *buffers):
        size = float(tensor.abs().mean()) or 1.0
        if tensor.dim() < 2 and isfinite(size):
            tensor.add_(torch.randn_like(tensor), alpha=size / 5)
