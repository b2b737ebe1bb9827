"""Compares a decoder's tree of branches with plain forwards of the same model."""

from __future__ import annotations

import torch
from primitives import plain_logprobs
from torch import Tensor
from transformers import PreTrainedModel
from tts_decode import TreeDecoder


def picked(model: PreTrainedModel, tokens: list[int], count: int) -> Tensor:
    """Log-probabilities of the last tokens, in one plain forward."""
    logprobs = plain_logprobs(model, tokens)[-count - 1 : -1]
    return logprobs.gather(-1, torch.tensor(tokens[-count:])[:, None])[:, 0]


def check_tree(decoder: TreeDecoder, model: PreTrainedModel, text: list[int]) -> None:
    """A prompt, text in a batch, steps, forks inside a page, other text after a cut. text: 105 tokens."""

    async def search() -> list[tuple[list[int], Tensor, Tensor]]:
        root = await decoder.root(text[:37])
        one, two = root.fork(2)
        first = await one.extend(text[37:90])
        steps = [await two.extend([token]) for token in text[90:105]]
        found = [(one.tokens, first, await one.next_logprobs())]
        found.append((two.tokens, torch.cat(steps), await two.next_logprobs()))
        (three,) = one.fork(1)
        three.truncate(41)
        forced = await three.extend(text[:30])
        found.append((three.tokens, forced, await three.next_logprobs()))
        return found

    for tokens, forced, following in decoder.run(search()):
        torch.testing.assert_close(forced, picked(model, tokens, len(forced)), atol=2e-4, rtol=0)
        torch.testing.assert_close(following, plain_logprobs(model, tokens)[-1], atol=2e-4, rtol=0)
