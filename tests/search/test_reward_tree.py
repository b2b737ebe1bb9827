"""The tree of a reward model: it mirrors the policy's, reads each step once, and goes with the branches."""

from __future__ import annotations

import asyncio
import gc
import random
from dataclasses import replace
from typing import Any

import pytest
from primitives import plain_states
from reward_cases import Answer, decoder_of, random_text
from tiny_models import byte_tokenizer, tiny_model
from torch import nn
from tts_decode import OutOfPagesError, gather
from tts_decode.rewards import Reader, Reading, RewardModel, ValueHead
from tts_decode.rewards.reward_model import step_texts

pytestmark = pytest.mark.usefixtures("one_thread")


def joined(tokenizer: Any, question: str, steps: Any) -> Reading:
    """No tags: each step is read at the token of its last letter, whatever the tokenizer makes of it."""
    text, ends = question, []
    for step in steps:
        text += step
        ends.append(len(text) - 1)
    encoding = tokenizer(text)
    positions = [encoding.char_to_token(end) for end in ends]
    return Reading(encoding["input_ids"][: positions[-1] + 1], [(position,) for position in positions])


@pytest.mark.parametrize("seed", range(4))
def test_a_random_tree_scores_as_plain_forwards_do(seed: int) -> None:
    """Merges across the ends of steps change tokens that were read already; roll-backs and siblings too."""
    rng = random.Random(seed)
    model, tokenizer = tiny_model(seed=seed), byte_tokenizer(pairs=["ab", "bc", "ca"])
    head = nn.Linear(64, 1)
    reader = Reader("joined", joined, ValueHead())
    decoder = decoder_of(model, tokenizer)
    prm = RewardModel(decoder, reader, head=head)
    changed = 0

    def expected(answer: Answer) -> list[float]:
        reading = joined(tokenizer, answer.prompt, step_texts(answer))
        rows = [position for (position,) in reading.positions]
        return head(plain_states(model, reading.ids))[rows, 0].tolist()

    async def search() -> None:
        nonlocal changed
        root = Answer([], prompt="abcab")
        live = [root]
        for _ in range(6):
            live = [
                parent.grow(random_text(rng, rng.randrange(4), "abc")[1:-1] or "b") for parent in live * 2
            ]
            live = rng.sample(live, min(len(live), 5))
            if rng.random() < 0.5:  # the branch itself continues, or is rolled back and goes another way
                live[0].steps[-1] = replace(live[0].steps[-1], text="ca")
            scores = await prm.step_scores(live)
            for answer, given in zip(live, scores, strict=True):
                assert given == pytest.approx(expected(answer), abs=5e-5)
                before = joined(tokenizer, answer.prompt, step_texts(answer.parent)).ids
                changed += joined(tokenizer, answer.prompt, step_texts(answer)).ids[: len(before)] != before
        again = prm.tokens_read
        await prm.step_scores(live)
        assert prm.tokens_read == again  # nothing is read twice

    decoder.run(search())
    assert changed >= 2
    assert decoder.stats().forward_tokens == prm.tokens_read


def test_ten_steps_read_five_times_fewer_tokens() -> None:
    """Alone and in a beam, and both counters are what they say."""
    tokenizer, rng = byte_tokenizer("ки"), random.Random(0)

    async def grow(prm: RewardModel, width: int) -> list[float]:
        live = [Answer([], prompt=random_text(rng, 60))]
        ratios = []
        for _ in range(10):
            live = [live[i % len(live)].grow(random_text(rng, 30) + "\n") for i in range(width)]
            await prm(live)
            ratios.append(prm.tokens_full / prm.tokens_read)
            live = live[: max(1, width // 2)]
        return ratios

    for width, least in ((1, 5.0), (8, 5.0)):
        decoder = decoder_of(tiny_model(), tokenizer)
        prm = RewardModel(decoder, "math_shepherd")
        ratios = decoder.run(grow(prm, width))
        assert prm.tokens_read == decoder.stats().forward_tokens
        assert ratios[-1] >= least, (prm.tokens_read, prm.tokens_full)


def test_all_branches_are_read_in_the_same_forwards() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    prm = RewardModel(decoder, "math_shepherd")
    root = Answer([])
    decoder.run(prm([root.grow(f"step {i}") for i in range(9)]))
    assert decoder.stats().steps == 2  # the question, then all steps

    async def apart() -> None:
        await gather(prm([root.grow(f"other {i}")]) for i in range(9))

    before = decoder.stats().steps
    decoder.run(apart())
    assert decoder.stats().steps == before + 1


def test_pages_return_with_the_branches() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    prm = RewardModel(decoder, "math_shepherd")
    root = Answer([])
    children = [root.grow("first " * 9), root.grow("second " * 9)]
    decoder.run(prm(children))
    grandchild = children[0].grow("third " * 9)
    decoder.run(prm([grandchild]))
    held = decoder.stats().resident_bytes
    del children[1]
    assert decoder.stats().branches == 3  # root, child and grandchild
    assert decoder.stats().resident_bytes < held
    del children
    assert decoder.stats().branches == 3  # the grandchild needs its parent
    del grandchild
    assert decoder.stats().branches == 1
    del root
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


def test_close_gives_everything_back_and_reading_starts_anew() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    answer = Answer(["one", "two"])
    with RewardModel(decoder, "math_shepherd") as prm:
        first = decoder.run(prm([answer]))
        assert decoder.stats().branches == 1
    assert decoder.stats().resident_bytes == 0
    assert decoder.run(prm([answer])) == pytest.approx(first, abs=1e-6)
    assert prm.tokens_read == prm.tokens_full


def test_a_cancelled_or_failed_call_changes_nothing() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"), kv_bytes=1 << 18, max_batch_tokens=16)
    prm = RewardModel(decoder, "math_shepherd")
    parent = Answer(["fine"])
    before = decoder.run(prm([parent]))
    branches, resident = decoder.stats().branches, decoder.stats().resident_bytes

    async def cancelled() -> None:
        task = asyncio.ensure_future(prm([parent.grow("word " * 20), parent.grow("other " * 20)]))
        while decoder.stats().forward_tokens == fed:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def too_much() -> None:
        await prm([parent.grow(f"{i} " * 40) for i in range(40)])

    fed = decoder.stats().forward_tokens
    decoder.run(cancelled())
    with pytest.raises(OutOfPagesError):
        decoder.run(too_much())
    gc.collect()
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (branches, resident)
    assert decoder.run(prm([parent])) == before


def test_aggregations_of_a_whole_answer() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    answer = Answer(["one ", "two ", "three"])
    (scores,) = decoder.run(RewardModel(decoder, "math_shepherd").step_scores([answer]))
    for name, expected in {"last": scores[-1], "min": min(scores), "window:2": sum(scores[1:]) / 2}.items():
        prm = RewardModel(decoder, "math_shepherd", agg_strategy=name)
        assert decoder.run(prm([answer])) == pytest.approx([expected], abs=1e-6)
    whole = RewardModel(decoder, "math_shepherd", agg_strategy="whole")
    as_one = RewardModel(decoder, "math_shepherd")
    assert decoder.run(whole([answer])) == pytest.approx(decoder.run(as_one([Answer([answer.text])])))


def test_an_answer_without_text_is_one_empty_step() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    prm = RewardModel(decoder, "math_shepherd")
    root = Answer([])
    empty, blank, done = [root, root.grow("\n"), root.grow("one").grow("")]
    scores = decoder.run(prm([empty, blank, done, done.parent]))
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert scores[2] == pytest.approx(scores[3], abs=1e-6)
    assert decoder.run(prm([])) == []
