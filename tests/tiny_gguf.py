"""A GGUF file of a random Llama with 2 layers and a byte-level tokenizer: 300 kB, made in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")  # a machine that only runs the GPU tests may lack it

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS = 64, 2, 1, 32, 96, 2


def write_tiny_gguf(path: Path, seed: int = 0) -> None:
    """Writes the file; equal seeds give equal bytes."""
    random = np.random.default_rng(seed)
    # The 256 characters that byte-level BPE maps bytes to, three words, control tokens.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "he", "Ye", "Yes", "No"]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e", "Y e", "Ye s", "N o"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * 0.05).astype(np.float32))

    add("token_embd.weight", len(tokens), HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", HIDDEN)
        add(f"{block}.ffn_norm.weight", HIDDEN)
        add(f"{block}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        add(f"{block}.ffn_gate.weight", INNER, HIDDEN)
        add(f"{block}.ffn_up.weight", INNER, HIDDEN)
        add(f"{block}.ffn_down.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
