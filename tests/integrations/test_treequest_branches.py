"""Branches of TreeGenerator's calls that fail, and of prompts whose KV went stale, are given back at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from primitives import make
from tiny_models import tiny_model
from tts_decode import BranchReleasedError, SamplingParams, ScorerError, TreeDecoder
from tts_decode.integrations.treequest import TreeGenerator
from tts_decode.rewards import mean_probability

PROMPT = "The prompt has more than one page of tokens."
STEPS = SamplingParams(max_tokens=64, max_step_tokens=8)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Python collects nothing meanwhile."""
    gc.disable()
    yield
    gc.enable()


def held(decoder: TreeDecoder) -> int:
    return decoder.stats().branches


async def failing(branches: Any) -> list[float]:
    raise RuntimeError("out of order")


async def too_high(branches: Any) -> list[float]:
    return [0.5, *(1.5 for _ in branches[1:])]


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(("scorer", "error"), [(failing, ScorerError), (too_high, ValueError)])
def test_children_of_a_failed_call_are_released(decoder: TreeDecoder, scorer: Any, error: Any) -> None:
    generate = TreeGenerator(decoder, PROMPT, scorer, sampling=STEPS)
    with pytest.raises(error) as caught:
        generate.batch([None, None, None])
    assert held(decoder) == 1  # the prompt's
    assert caught.traceback  # its frames hold what they made
    generate.release()


@pytest.mark.usefixtures("uncollected")
def test_children_beside_one_that_fails_are_released(decoder: TreeDecoder) -> None:
    generate = TreeGenerator(decoder, PROMPT, mean_probability(), sampling=STEPS)
    state, _ = generate(None)
    gone, _ = generate(None)
    gone.release()
    with pytest.raises(BranchReleasedError) as caught:
        generate.batch([state, None, gone])
    assert held(decoder) == 2  # the prompt's and the state's
    assert caught.traceback
    generate.release()


@pytest.mark.usefixtures("uncollected")
def test_a_prompt_that_went_stale_is_released_before_it_is_computed_again() -> None:
    model = tiny_model()
    decoder = make(model)
    generate = TreeGenerator(decoder, PROMPT, mean_probability(), sampling=STEPS)
    (before, _), *_ = generate.batch([None])
    stale = vars(generate)["_root"]
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    before.release()
    after, _ = generate(None)
    assert stale.released
    assert held(decoder) == 2
    generate.release()
    assert (after.text != "", held(decoder)) == (True, 0)


def test_calls_side_by_side_share_one_prompt(decoder: TreeDecoder) -> None:
    generate = TreeGenerator(decoder, PROMPT, mean_probability(), sampling=STEPS)

    async def run() -> list[Any]:
        from tts_decode import gather

        return await gather(generate.expand([None]) for _ in range(3))

    states = decoder.run(run())
    assert len(states) == 3
    assert held(decoder) == 4
    generate.release()
