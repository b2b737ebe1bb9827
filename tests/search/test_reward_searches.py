"""Reward models in searches: on a tree of their own, on the policy's, and in one budget with it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from reward_cases import MINUS, PLUS, Answer, decoder_of, plain_logits
from scripted import run_scripted, scripted_decoder
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import KVBudget, OutOfPagesError, SamplingParams
from tts_decode.rewards import RewardModel
from tts_decode.rewards.reward_model import step_texts
from tts_decode.search import beam_search

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_search_leaves_nothing_in_the_reward_model() -> None:
    """A real policy and its search; every score of its tree equals a plain forward's."""
    policy = decoder_of(tiny_model(seed=3), byte_tokenizer())
    model, tokenizer = tiny_model("mistral"), byte_tokenizer("ки")
    decoder = decoder_of(model, tokenizer)
    prm = RewardModel(decoder, "math_shepherd", question="2 + 3 = ?")
    checked = 0

    async def checking(branches: Any) -> list[float]:
        nonlocal checked
        scores = await prm(branches)
        for branch, score in zip(branches, scores, strict=True):
            reading = prm.reader.template(tokenizer, "2 + 3 = ?", step_texts(branch))
            plain = plain_logits(model, reading.ids)[-1, [PLUS, MINUS]].softmax(-1)[0]
            assert score == pytest.approx(float(plain), abs=5e-5)
            checked += 1
        return scores

    async def search() -> None:
        sampling = SamplingParams(max_step_tokens=8, max_tokens=40, seed=1)
        root = await policy.root("2 + 3 =", sampling)
        await beam_search(root, n=6, beam_width=2, scorer=checking)
        assert decoder.stats().branches == 1  # the question, for the next search from this root
        root.release()

    policy.run(search())
    gc.collect()  # what failed or was cancelled may sit in cycles of its traceback
    assert decoder.stats().branches == policy.stats().branches == 0
    assert decoder.stats().resident_bytes == 0
    assert checked >= 24
    assert prm.tokens_full > 2 * prm.tokens_read


def test_a_policy_of_text_alone_has_a_mirror_too() -> None:
    """A policy behind a completion call has no KV of ours; what judges it still reads each step once."""
    policy = scripted_decoder(lambda prefix, k: (f"{len(prefix) * 7 % 10} and {k}\n", "stop_string"))
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    prm = RewardModel(decoder, "math_shepherd")
    result = run_scripted(policy, beam_search, "2 + 3 =", n=4, beam_width=2, max_steps=6, scorer=prm)
    steps = [line + "\n" for line in result.best.text.splitlines()]
    ids = prm.reader.template(decoder.tokenizer, "2 + 3 =", steps).ids
    expected = plain_logits(decoder.model, ids)[:, [PLUS, MINUS]].softmax(-1)[torch.tensor(ids) == 257, 0]
    assert result.best.scores == pytest.approx(expected.tolist(), abs=5e-5)
    assert prm.tokens_full > 3 * prm.tokens_read
    gc.collect()
    assert decoder.stats().branches == 0


def test_a_model_judges_itself_on_its_own_tree() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))

    async def search() -> None:
        root = await decoder.root("2 + 3 =", SamplingParams(max_step_tokens=8, max_tokens=24))
        with RewardModel(decoder, "math_shepherd", agg_strategy="whole") as prm:
            result = await beam_search(root, n=4, beam_width=2, scorer=prm)
            ids = prm.reader.template(decoder.tokenizer, "2 + 3 =", [result.best.text]).ids
            assert result.best.score == pytest.approx(
                float(plain_logits(decoder.model, ids)[-1, [PLUS, MINUS]].softmax(-1)[0]), abs=1e-5
            )
        root.release()

    decoder.run(search())
    gc.collect()
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


def test_policy_and_reward_model_share_one_budget() -> None:
    """Each grows into what the other leaves, never beyond the sum, and pages go back and forth."""
    budget = KVBudget(1 << 20)
    policy = decoder_of(tiny_model(seed=3), byte_tokenizer(), kv_bytes=budget)
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"), kv_bytes=budget)
    prm = RewardModel(decoder, "math_shepherd", question="q")
    question = Answer([])
    answers = [question.grow(f"{letter} " * 150) for letter in "ab"]

    async def compete() -> None:
        root = await policy.root("x" * 320)
        await prm(answers[:1])
        held = policy.stats().resident_bytes, decoder.stats().resident_bytes
        assert budget.resident == sum(held) <= budget.total
        assert sum(held) + held[1] > budget.total > 2 * held[1]  # no room for two until the policy goes
        with pytest.raises(OutOfPagesError):
            await prm(answers)
        assert decoder.stats().resident_bytes == held[1]
        root.release()
        await prm(answers)

    policy.run(compete())
    assert budget.peak <= budget.total
    prm.close()
    gc.collect()
    assert budget.resident == 0
