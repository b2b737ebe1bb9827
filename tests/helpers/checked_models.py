"""Transformers models for the tests of the self-check, and how far decoders are from their forwards."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from tiny_models import EOS, VOCAB, byte_tokenizer
from torch import Tensor
from transformers import PreTrainedModel
from tts_decode import TreeDecoder

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 1,
}
DECODER_SHAPE = SHAPE | {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512}


def made(config: Any, *, randomised: bool = True) -> PreTrainedModel:
    """randomised: norms, biases and gates too, else as the class initialises them."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    if randomised:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() < 2:
                    weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def serve(model: PreTrainedModel, **options: Any) -> TreeDecoder:
    return TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 23, **options)


def largest_difference(served: TreeDecoder, seed: int = 7) -> float:
    """Of the log-probabilities of 120 tokens, in a forked branch, and those of one plain forward."""
    tokens = torch.randint(2, 250, (120,), generator=torch.Generator().manual_seed(seed))

    async def forced() -> Tensor:
        root = await served.root(tokens[:33].tolist())
        branch = root.fork(1)[0]
        first = await branch.extend(tokens[33:80].tolist())
        return torch.cat([first, *[await branch.extend([token]) for token in tokens[80:].tolist()]])

    got = served.run(forced())
    with torch.no_grad():
        expected = served.model(tokens[None]).logits[0].log_softmax(-1)
    return float((got - expected[32:-1].gather(-1, tokens[33:, None])[:, 0]).abs().max())
