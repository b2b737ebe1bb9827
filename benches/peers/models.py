"""The models that all peers run, as folders and as GGUF: the default one, and a wide random one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from tts_decode.default_model import default_model_file
from tts_decode.model.loading import load_model

KINDS = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16}
FILES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}
# 32/8/128 heads, 8 layers: a slice of the models that are 8B as a whole.
WIDE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 8, "num_attention_heads": 32}
WIDE |= {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": True,
}


def prepare(name: str, forms: Iterable[str], folder: Path) -> dict[str, Path]:
    """Paths of a model, "smollm2" or "wide", in these forms: "folder", "F32", "F16", "BF16", and "Q4_1", in
    which the first one comes."""
    paths = {"folder": folder / name}
    if not (paths["folder"] / "config.json").exists():
        model, tokenizer = load_model(dtype="float32")
        if name == "wide":
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **WIDE))
        tokenizer.save_pretrained(paths["folder"])
        model.save_pretrained(paths["folder"])
    if name == "smollm2":
        paths["Q4_1"] = default_model_file()
    for kind in KINDS.keys() & forms:
        paths[kind] = folder / f"{name}-{kind}.gguf"
        if not paths[kind].exists():
            model = AutoModelForCausalLM.from_pretrained(paths["folder"], dtype=torch.float32)
            write_gguf(model, kind, paths[kind], default_model_file())
    return paths


def write_gguf(model: PreTrainedModel, kind: str, path: Path, tokenizer: Path) -> None:
    """A Llama as GGUF. tokenizer: a GGUF file from which it is copied."""
    config = model.config
    writer = gguf.GGUFWriter(path.with_suffix(".partial"), "llama")
    writer.add_file_type(FILES[kind])
    add_keys(writer, config, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _interleaved(values, config.head_dim)
        form = KINDS[kind] if values.ndim == 2 else Kind.F32
        target = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(target, gguf.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".partial").rename(path)


def add_keys(writer: gguf.GGUFWriter, config: Any, tokenizer: Path) -> None:
    """Sizes of a model of the Llama kind, as transformers names them, and the tokenizer of another file.
    Tokens that it lacks in the model's vocabulary become unused ones, as converters write them."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)  # else readers take embedding length / heads
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    source = gguf.GGUFReader(tokenizer)
    missing = range(len(source.fields["tokenizer.ggml.tokens"].data), config.vocab_size)
    unused = {
        "tokenizer.ggml.tokens": [f"[PAD{i}]" for i in missing],
        "tokenizer.ggml.token_type": [int(gguf.TokenType.UNUSED) for _ in missing],
        "tokenizer.ggml.scores": [0.0 for _ in missing],
    }
    for field in source.fields.values():
        if field.name.startswith("tokenizer."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            value = field.contents()
            if field.name in unused:
                value = value + unused[field.name]
            writer.add_key_value(field.name, value, field.types[0], inner)


def _interleaved(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """GGUF's Llama rotates neighbours where transformers rotates halves: rows j and j + d/2 of a head become
    rows 2j and 2j + 1."""
    rows, columns = weight.shape
    halves = weight.reshape(rows // head_dim, 2, head_dim // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
