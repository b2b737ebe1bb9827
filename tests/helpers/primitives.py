"""Shared by the tests of the engine's primitives; the fixtures `model` and `decoder` are in conftest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

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


def plain_next_logprobs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    return plain_logprobs(model, tokens)[-1]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)  # float32, other GEMM shapes


async def fresh_logprobs(branch: Branch) -> torch.Tensor:
    """The next-token distribution of a new prompt with the branch's tokens, computed on an empty tree."""
    root = await make(branch.decoder.model).root(branch.tokens)
    logprobs = await root.next_logprobs()
    root.release()
    return logprobs


async def assert_like_fresh(branch: Branch) -> None:
    close(await branch.next_logprobs(), await fresh_logprobs(branch))


async def cancel_after(task: asyncio.Task[Any], cycles: int) -> bool:
    """Whether it was done before that many cycles of the event loop were over."""
    for _ in range(cycles):
        await asyncio.sleep(0)
    done = task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return done


def at_every_cycle(decoder: TreeDecoder, cancelled_after: Callable[[int], Coroutine[Any, Any, bool]]) -> None:
    """cancelled_after(cycles): whether its call was done by then."""
    cycles = 0
    while not decoder.run(cancelled_after(cycles)):
        cycles += 1
    assert cycles > 6
    assert decoder.stats().resident_bytes == 0


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
