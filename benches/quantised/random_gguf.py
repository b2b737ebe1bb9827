"""Writes random models with the shapes of known ones as GGUF, with one tensor in memory at a time.

Weights are normal with the standard deviation of an initialiser, so that texts and activations stay sane;
those of norms are 1. A tensor's name seeds its values: they are the same in files of all kinds.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quant_shape_to_byte_shape
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from benches.peers.models import WIDE, add_keys

STD = 0.02
CHUNK = 1 << 23  # numbers that are drawn at once

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# model -> model_type and attributes of its config. Without a vocabulary: that of the tokenizer.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "wide": ("llama", WIDE),
    "llama-1b": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _LLAMA3 | {"factor": 32.0},
        },
    ),
    "llama-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "tie_word_embeddings": False,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _LLAMA3 | {"factor": 8.0},
        },
    ),
    "qwen3-4b": (
        "qwen3",
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "olmoe": (
        "olmoe",
        {
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "vocab_size": 50304,
            "tie_word_embeddings": False,
            "max_position_embeddings": 16384,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}


def write_random(model: str, kind: str, path: Path, tokenizer: Path, layers: int | None = None) -> None:
    """kind: Q4_0, Q8_0 or another that the package gguf quantises to. tokenizer: a GGUF file.
    layers: how many, instead of all."""
    write(config_of(model, tokenizer, layers), kind, path, tokenizer)


def config_of(model: str, tokenizer: Path, layers: int | None = None) -> Any:
    """The config of transformers of a model in SHAPES."""
    model_type, sizes = SHAPES[model]
    tokens = len(gguf.GGUFReader(tokenizer).fields["tokenizer.ggml.tokens"].data)
    config = AutoConfig.for_model(model_type, **{"vocab_size": tokens, **sizes})
    if layers is not None:
        config.num_hidden_layers = layers
    return config


def write(config: Any, kind: str, path: Path, tokenizer: Path) -> None:
    """A random model of this config of transformers: llama, qwen3 or olmoe."""
    shapes = tensor_shapes(config)
    kinds = {name: Kind[kind] if _quantised(name, shape) else Kind.F32 for name, shape in shapes.items()}

    def data(name: str) -> np.ndarray:
        if name == "rope_freqs.weight":
            return rotary_factors(config)
        return random_tensor(name, shapes[name], kinds[name])

    _write(config, kind, path, tokenizer, kinds, data)


def repeat_layers(config: Any, kind: str, base: Path, path: Path, tokenizer: Path) -> None:
    """The model of this config from a file of fewer layers, each of which is written several times in a row.

    An engine reads as many bytes of it as of a model that was drawn whole. Kinds are those of the base:
    llama.cpp gives half of the layers more bits in Q4_K_M and Q5_K_M, of 8, 16, 32 and 36.
    """
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(base).tensors}
    fewer = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))

    def source(name: str) -> gguf.ReaderTensor:
        if not name.startswith("blk."):
            return tensors[name]
        _, layer, rest = name.split(".", 2)
        return tensors[f"blk.{int(layer) * fewer // config.num_hidden_layers}.{rest}"]

    kinds = {name: source(name).tensor_type for name in tensor_shapes(config)}
    _write(config, kind, path, tokenizer, kinds, lambda name: source(name).data)


def _write(
    config: Any,
    kind: str,
    path: Path,
    tokenizer: Path,
    kinds: dict[str, Kind],
    data: Callable[[str], np.ndarray],
) -> None:
    """data: float32, or the bytes of rows, of a tensor by its name."""
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, config.model_type)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    add_keys(writer, config, tokenizer)
    if config.model_type == "olmoe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    for name, shape in tensor_shapes(config).items():
        size, form = math.prod(shape) * 4, np.dtype(np.float32)
        if kinds[name] != Kind.F32:
            shape, form = quant_shape_to_byte_shape(shape, kinds[name]), np.dtype(np.uint8)
            size = math.prod(shape)
        writer.add_tensor_info(name, shape, form, size, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in kinds:
        writer.write_tensor_data(data(name))
    writer.close()
    partial.rename(path)


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, the length of a row last."""
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    whole: dict[str, tuple[int, ...]] = {
        "token_embd": (config.vocab_size, hidden),
        "output_norm": (hidden,),
    }
    if not config.tie_word_embeddings:
        whole["output"] = (config.vocab_size, hidden)
    if config.rope_parameters["rope_type"] == "llama3":
        whole["rope_freqs"] = (head // 2,)
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
    }
    if config.model_type == "qwen3":
        block |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
    if config.model_type == "olmoe":
        experts = config.num_experts
        block |= {
            "attn_q_norm": (queries,),
            "attn_k_norm": (keys,),
            "ffn_gate_inp": (experts, hidden),
            "ffn_gate_exps": (experts, inner, hidden),
            "ffn_up_exps": (experts, inner, hidden),
            "ffn_down_exps": (experts, hidden, inner),
        }
    else:
        block |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    layers = range(config.num_hidden_layers)
    blocks = {f"blk.{i}.{name}": shape for i in layers for name, shape in block.items()}
    return {f"{name}.weight": shape for name, shape in (whole | blocks).items()}


def random_tensor(name: str, shape: tuple[int, ...], kind: Kind) -> np.ndarray:
    """float32 of this shape, or the bytes of its rows."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    source = np.random.default_rng(zlib.crc32(name.encode()))
    rows, columns = math.prod(shape[:-1]), shape[-1]
    most = max(1, CHUNK // columns)
    parts = [
        gguf.quantize(
            source.standard_normal((min(most, rows - first), columns), np.float32) * np.float32(STD), kind
        )
        for first in range(0, rows, most)
    ]
    return np.concatenate(parts).reshape(*shape[:-1], -1)


def rotary_factors(config: Any) -> np.ndarray:
    """What the frequency of each pair of dimensions is divided by, float32 [head_dim / 2]."""
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    plain = config.rope_parameters["rope_theta"] ** -exponents
    return (plain / frequencies.double().numpy()).astype(np.float32)


def _quantised(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and not name.endswith("ffn_gate_inp.weight")  # routers stay as they are
