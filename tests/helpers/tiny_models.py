"""Tiny random models of each served family and a byte-level tokenizer, all built on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

EOS = 256
VOCAB = 260

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}

_WITHOUT_HEAD_DIM = {name: value for name, value in _SHAPE.items() if name != "head_dim"}
_ENDS = {name: _SHAPE[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
_HALF_ROTARY = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

_CONFIGS = {
    "llama": lambda **o: hf.LlamaConfig(**(_SHAPE | o)),
    "qwen2": lambda **o: hf.Qwen2Config(**(_SHAPE | o)),
    "qwen2_sliding": lambda **o: hf.Qwen2Config(
        **_SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1, **o
    ),
    "qwen3": lambda **o: hf.Qwen3Config(**_SHAPE, **o),
    "mistral": lambda **o: hf.MistralConfig(**(_SHAPE | o), sliding_window=9),
    "gemma": lambda **o: hf.GemmaConfig(**(_SHAPE | o)),
    "gemma2": lambda **o: hf.Gemma2Config(
        **(_SHAPE | {"final_logit_softcapping": 9.0} | o),
        sliding_window=8,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=2.0,
    ),
    "gemma3": lambda **o: hf.Gemma3TextConfig(
        **_SHAPE, sliding_window=11, query_pre_attn_scalar=32, sliding_window_pattern=2, **o
    ),
    "phi3": lambda **o: hf.Phi3Config(
        **(_SHAPE | o), sliding_window=12, rope_parameters=_HALF_ROTARY, original_max_position_embeddings=512
    ),
    "olmo2": lambda **o: hf.Olmo2Config(**_SHAPE, **o),
    "olmo3": lambda **o: hf.Olmo3Config(**_SHAPE, sliding_window=10, layer_types=_MIXED, **o),
    "exaone4": lambda **o: hf.Exaone4Config(**_SHAPE, sliding_window=9, layer_types=_MIXED, **o),
    "granite": lambda **o: hf.GraniteConfig(
        **_SHAPE,
        attention_multiplier=0.15,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        logits_scaling=2.0,
        **o,
    ),
    "granite_swa": lambda **o: hf.GraniteSWAConfig(
        **_SHAPE,
        sliding_window=9,
        layer_types=_MIXED,
        layer_rope_theta=[50_000.0, 1_000.0, 0.0],
        attention_multiplier=0.15,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        logits_scaling=2.0,
        **o,
    ),
    "smollm3": lambda **o: hf.SmolLM3Config(**_SHAPE, no_rope_layers=[1, 0, 1], **o),
    "cohere": lambda **o: hf.CohereConfig(**_SHAPE, logit_scale=0.5, **o),
    "cohere2": lambda **o: hf.Cohere2Config(
        **_SHAPE, sliding_window=9, layer_types=_MIXED, logit_scale=0.5, **o
    ),
    "glm": lambda **o: hf.GlmConfig(**_SHAPE, rope_parameters=_HALF_ROTARY, attention_bias=True, **o),
    "glm4": lambda **o: hf.Glm4Config(**_SHAPE, rope_parameters=_HALF_ROTARY, attention_bias=True, **o),
    "stablelm": lambda **o: hf.StableLmConfig(
        **(_SHAPE | {"hidden_size": 128} | o), rope_parameters=_HALF_ROTARY, use_qkv_bias=True
    ),
    "stablelm_parallel": lambda **o: hf.StableLmConfig(
        **(_SHAPE | {"hidden_size": 128} | o), rope_parameters=_HALF_ROTARY, use_parallel_residual=True
    ),
    "starcoder2": lambda **o: hf.Starcoder2Config(**_SHAPE, sliding_window=13, **o),
    "arcee": lambda **o: hf.ArceeConfig(**(_SHAPE | o)),
    "nemotron": lambda **o: hf.NemotronConfig(**(_SHAPE | o), mlp_bias=True),
    "starcoder2_erf": lambda **o: hf.Starcoder2Config(**_SHAPE, sliding_window=13, hidden_act="gelu", **o),
    "gemma_erf": lambda **o: hf.GemmaConfig(**_SHAPE, hidden_activation="gelu", **o),
    "mixtral": lambda **o: hf.MixtralConfig(
        **_SHAPE, sliding_window=14, num_local_experts=5, num_experts_per_tok=2, **o
    ),
    "qwen2_moe": lambda **o: hf.Qwen2MoeConfig(
        **(_WITHOUT_HEAD_DIM | {"hidden_size": 128, "mlp_only_layers": [1]} | o),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=80,
    ),
    "qwen3_moe": lambda **o: hf.Qwen3MoeConfig(
        **_SHAPE, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=48, mlp_only_layers=[1], **o
    ),
    "olmoe": lambda **o: hf.OlmoeConfig(
        **(_SHAPE | {"hidden_size": 128}), num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, **o
    ),
    "gpt_oss": lambda **o: hf.GptOssConfig(
        **_SHAPE, sliding_window=9, num_local_experts=4, num_experts_per_tok=2, **o
    ),
    "ministral": lambda **o: hf.MinistralConfig(**_SHAPE, sliding_window=9, layer_types=_MIXED, **o),
}
_GENERAL_CONFIGS = {
    "llama4": lambda **o: hf.Llama4TextConfig(
        **(
            _SHAPE
            | {"attention_chunk_size": 13, "floor_scale": 5, "attn_scale": 0.7, "moe_layers": [0, 2]}
            | {"no_rope_layers": [1, 0, 1]}
            | o
        ),
        intermediate_size_mlp=80,
        num_local_experts=3,
    ),
    "bloom": lambda **o: hf.BloomConfig(
        **({"n_head": 6, "hidden_size": 192} | o), **_ENDS, n_layer=3, tie_word_embeddings=False
    ),
    "mpt": lambda **o: hf.MptConfig(
        **({"n_heads": 6, "d_model": 192, "max_seq_len": 512} | o),
        **_ENDS,
        n_layers=3,
        tie_word_embeddings=False,
    ),
}
FAMILIES = tuple(_CONFIGS)  # that run packed
GENERAL = tuple(_GENERAL_CONFIGS)


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    auto: Any = hf.AutoModelForCausalLM,
    **options: Any,
) -> PreTrainedModel:
    """A random model whose greedy text is varied: its weights are larger than the usual initialisation.

    auto: the transformers auto class of its head; options: of its config, such as num_labels.
    """
    torch.manual_seed(seed)
    config = (_CONFIGS | _GENERAL_CONFIGS)[family](initializer_range=0.2, **options)
    model = auto.from_config(config, dtype=dtype)
    model.eval()
    return model


def byte_tokenizer(
    *tags: str, pairs: Sequence[str] = (), chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Token i is byte i, so that a character beyond ASCII takes several tokens; `EOS` ends a text.

    tags: added tokens, from 257 on. pairs: two-letter tokens from 257 on, which byte-pair merges make.
    """
    alphabet = _byte_alphabet()
    vocab = {char: byte for byte, char in enumerate(alphabet)}
    vocab |= {pair: EOS + 1 + i for i, pair in enumerate(pairs)} | ({"<eos>": EOS} if pairs else {})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(pair[0], pair[1]) for pair in pairs]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    assert fast.convert_tokens_to_ids("<eos>") == EOS
    fast.add_tokens(list(tags))
    fast.chat_template = chat_template
    return fast


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def greedy(model: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    """What `model.generate` adds to the prompt."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False
    )
    return out[0, len(prompt) :].tolist()
