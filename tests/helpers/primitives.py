"""What the tests of the engine's primitives share; the fixtures `model` and `decoder` are in conftest."""

from __future__ import annotations

import torch
import transformers as hf
from tiny_models import byte_tokenizer
from transformers import PreTrainedModel
from tts_decode import Branch, TreeDecoder

PAGE = 16
PROMPT = list(b"The quick brown fox jumps over the lazy dog and runs.")  # 53 tokens: 4 pages, 5 of the last


def make(model: PreTrainedModel, **options: object) -> TreeDecoder:
    decoder = TreeDecoder(model, byte_tokenizer(), **({"kv_bytes": 1 << 24} | options))
    decoder.eos_token_ids = frozenset()  # a random model ends its texts at random
    return decoder


def pages(decoder: TreeDecoder) -> int:
    return decoder.stats().resident_bytes // decoder.stats().page_bytes


def table(branch: Branch) -> list[int]:
    tables, lengths = branch.decoder.runtime.tree.block_tables([branch.id])
    return tables[0, : -(-lengths[0] // PAGE)].tolist()


def plain_states(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Last hidden states [T, hidden] of a forward over the whole text."""
    with torch.no_grad():
        return model.base_model(torch.tensor([tokens])).last_hidden_state[0]


def plain_logprobs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[T, vocab] of a forward over the whole text."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)  # float32, other GEMM shapes


HEADLESS = {
    "bare": hf.LlamaModel,
    "sequence class": hf.LlamaForSequenceClassification,
    "token class": hf.LlamaForTokenClassification,
}


def headless(kind: str, model: PreTrainedModel) -> PreTrainedModel:
    """The same weights without the LM head."""
    config = type(model.config).from_dict(model.config.to_dict())
    other = HEADLESS[kind](config).eval()
    other.base_model.load_state_dict(model.base_model.state_dict())
    return other
