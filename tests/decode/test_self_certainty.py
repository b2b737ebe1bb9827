"""Self-certainty of steps against the KL divergence of a plain forward's distributions."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import PROMPT, make, plain_logprobs
from transformers import PreTrainedModel
from tts_decode import SamplingParams, gather
from tts_decode.decoding.sampler import self_certainties
from tts_decode.errors import ScorerError
from tts_decode.rewards import score_branches, self_certainty

pytestmark = pytest.mark.usefixtures("one_thread")


def divergence(logprobs: torch.Tensor) -> torch.Tensor:
    """KL(uniform || p) by its definition, of each row of log-probabilities."""
    uniform = torch.full_like(logprobs, 1 / logprobs.shape[-1])
    return torch.nn.functional.kl_div(logprobs, uniform, reduction="none").sum(-1)


@given(
    st.lists(st.lists(st.floats(-30, 30, width=32), min_size=7, max_size=7), min_size=1, max_size=5),
)
@settings(max_examples=60)
def test_the_sampler_gives_the_divergence_of_each_row(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows)
    exact = logits.double()
    values = self_certainties(logits, exact.logsumexp(-1).tolist())
    expected = divergence(exact.log_softmax(-1))
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, atol=1e-9, rtol=1e-9)


def test_a_uniform_row_knows_nothing_and_an_impossible_token_is_infinitely_far() -> None:
    flat, banned = torch.full((1, 8), 3.0), torch.tensor([[0.0, -math.inf]])
    assert self_certainties(flat, [3.0 + math.log(8)]) == pytest.approx([0.0])
    assert self_certainties(banned, [0.0]) == [math.inf]


def test_steps_tell_the_models_own_certainty_where_they_are_asked(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        branch = await decoder.root(PROMPT, SamplingParams(seed=2, max_step_tokens=6, frequency_penalty=1.0))
        step = await branch.step(self_certainty=True, temperature=0.3)
        rows = plain_logprobs(model, branch.tokens)[len(PROMPT) - 1 : -1].double()
        expected = divergence(rows).float()
        torch.testing.assert_close(torch.tensor(step.self_certainties), expected, atol=2e-4, rtol=1e-4)
        assert (await branch.step()).self_certainties == ()

    asyncio.run(search())


def test_the_bits_do_not_depend_on_the_batch(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(seed=2, max_step_tokens=4))
        asked = [True, False, True, True]
        together = await gather(
            branch.step(self_certainty=certain, seed=i)
            for i, (branch, certain) in enumerate(zip(root.fork(4), asked, strict=True))
        )
        assert [bool(step.self_certainties) for step in together] == asked
        alone = await root.copy().step(self_certainty=True, seed=2)
        assert alone.self_certainties == together[2].self_certainties

    asyncio.run(search())


def test_the_scorer_takes_the_mean_and_names_what_is_missing(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(seed=3, max_step_tokens=3, self_certainty=True))
        assert await score_branches(self_certainty(), [root]) == [0.0]
        (branch,) = root.fork()
        values = [value for _ in range(2) for value in (await branch.step()).self_certainties]
        assert await score_branches(self_certainty(), [branch]) == pytest.approx([sum(values) / len(values)])
        await branch.step(self_certainty=False)
        with pytest.raises(ScorerError, match="sample with SamplingParams\\(self_certainty=True\\)"):
            await score_branches(self_certainty(), [branch])

    asyncio.run(search())


def test_it_is_a_truth_value() -> None:
    with pytest.raises(TypeError, match="self_certainty: got 1, expected True or False"):
        SamplingParams(self_certainty=1)  # type: ignore[arg-type]
