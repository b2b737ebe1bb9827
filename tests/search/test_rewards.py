"""Scorers: values against the model itself, and no trace in the KV tree."""

import asyncio
import math
import threading
from functools import partial

import pytest
import torch
from scripted import scorer, scripted_decoder
from tiny_models import EOS, byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.errors import ScorerError
from tts_decode.rewards import ensemble, mean_logprob, score_branches, self_evaluation, verifier

pytestmark = pytest.mark.usefixtures("one_thread")

YES, NO = ("y", "Y"), ("n", "N")


@pytest.fixture(scope="module")
def decoder():
    return TreeDecoder(
        tiny_model(),
        byte_tokenizer(),
        kv_bytes=16 << 20,
        sampling=SamplingParams(max_tokens=20, max_step_tokens=8),
    )


async def branches_of(decoder, n, steps=1):
    root = await decoder.root("2 + 3 =")
    branches = root.fork(n)
    for branch in branches:
        for _ in range(steps):
            await branch.step()
    root.release()
    return branches


def expected_p_yes(decoder, tokens):
    """P(yes) by a plain forward of the whole text."""
    with torch.no_grad():
        probs = decoder.model(torch.tensor([tokens])).logits[0, -1].double().softmax(-1)
    yes, no = (sum(probs[ord(c)] for c in answers) for answers in (YES, NO))
    return float(yes / (yes + no))


def test_self_evaluation_is_p_yes_and_costs_no_kv(decoder):
    async def evaluate():
        branches = await branches_of(decoder, 5)
        before, lengths = decoder.stats(), [branch.length for branch in branches]
        scores = await self_evaluation(" ok?", YES, NO)(branches)
        after = decoder.stats()
        kept = ("branches", "logical_tokens", "unique_tokens", "resident_bytes")
        assert [getattr(before, name) for name in kept] == [getattr(after, name) for name in kept]
        assert lengths == [branch.length for branch in branches]
        expected = [expected_p_yes(decoder, [*branch.tokens, *b" ok?"]) for branch in branches]
        for branch in branches:
            branch.release()
        return scores, expected

    scores, expected = decoder.run(evaluate())
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) == 5


def test_self_evaluation_asks_all_branches_in_the_same_forwards(decoder):
    async def forwards(n):
        branches = await branches_of(decoder, n)
        before = decoder.stats().steps
        await self_evaluation(" ok?", YES, NO)(branches)
        count = decoder.stats().steps - before
        for branch in branches:
            branch.release()
        return count

    assert decoder.run(forwards(9)) == decoder.run(forwards(1)) <= 2


def test_self_evaluation_leaves_a_closing_end_token_out(decoder):
    async def evaluate():
        (branch,) = await branches_of(decoder, 1)
        (open_score,) = await self_evaluation(" ok?", YES, NO)([branch])
        await branch.extend([EOS])
        branch.finish("eos")
        (score,) = await self_evaluation(" ok?", YES, NO)([branch])
        assert branch.finish_reason == "eos"
        branch.release()
        return open_score, score

    open_score, score = decoder.run(evaluate())
    assert score == pytest.approx(open_score, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": ""}, "question: got nothing"),
        ({"yes": ("Yes",)}, r"yes: got \['Yes'\], expected one that is a single token"),
        ({"yes": YES, "no": ("No",)}, r"no: got \['No'\], expected one that is a single token"),
        ({"yes": YES, "no": ("y",)}, "which shares a token with no"),
    ],
)
def test_self_evaluation_checks_its_wording(decoder, arguments, message):
    async def evaluate():
        branches = await branches_of(decoder, 1)
        try:
            await self_evaluation(**arguments)(branches)
        finally:
            branches[0].release()

    with pytest.raises(ValueError, match=message):
        decoder.run(evaluate())
    assert decoder.stats().branches == 0


def test_mean_logprob_and_verifier(decoder):
    async def score():
        branches = await branches_of(decoder, 3, steps=2)
        values = await mean_logprob()(branches), await verifier(len)(branches)
        logprobs, texts = [branch.logprobs for branch in branches], [branch.text for branch in branches]
        for branch in branches:
            branch.release()
        return values, logprobs, texts

    (means, lengths), logprobs, texts = decoder.run(score())
    assert means == pytest.approx([sum(values) / len(values) for values in logprobs])
    assert lengths == [len(text) for text in texts]


def test_a_slow_verifier_in_threads_holds_nobody_up(decoder):
    """All texts are in the verifier at once, while another branch decodes on."""
    inside, decoded = threading.Barrier(3), threading.Event()

    def slow(text):
        inside.wait(timeout=30)
        assert decoded.wait(timeout=30)
        return len(text)

    async def score():
        *branches, other = await branches_of(decoder, 4)
        pending = asyncio.ensure_future(verifier(slow, threaded=True)(branches))
        await other.step()
        assert not pending.done()
        decoded.set()
        scores = await pending
        texts = [branch.text for branch in branches]
        for branch in (*branches, other):
            branch.release()
        return scores, texts

    scores, texts = decoder.run(score())
    assert scores == [len(text) for text in texts]


def returning(values):
    async def wrong(branches):
        return values

    return wrong


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "scorer verifier: got the score nan for branch {}"), (-math.inf, "the score -inf")],
)
def test_scores_are_checked(decoder, value, message):
    async def score():
        branches = await branches_of(decoder, 1)
        try:
            with pytest.raises(ValueError, match=message.format(branches[0].id)):
                await score_branches(verifier(lambda text: value), branches)
        finally:
            branches[0].release()

    decoder.run(score())


@pytest.mark.parametrize(
    ("scorer", "shown"),
    [
        (returning(["high"]), "'high'"),
        (returning([10**400]), "1000.*0"),  # beyond the range of float64
        (partial(returning([math.nan])), "nan"),
    ],
)
def test_a_score_that_is_no_number_is_named(decoder, scorer, shown):
    async def score():
        branches = await branches_of(decoder, 1)
        try:
            message = rf"^scorer wrong: got the score {shown} for branch \d+, expected a finite number"
            with pytest.raises(ValueError, match=message):
                await score_branches(scorer, branches)
        finally:
            branches[0].release()

    decoder.run(score())


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (None, "scorer: got NoneType, expected an async function of branches"),
        (lambda branches: [1.0], "scorer <lambda>: got a list of it, expected an awaitable"),
        (returning([None]), "scorer wrong: got the score None for branch {}, expected a finite number"),
        (returning(1.0), "scorer wrong: got a float of it, expected a list"),
    ],
)
def test_what_is_no_scorer_is_refused(decoder, scorer, message):
    async def score():
        branches = await branches_of(decoder, 1)
        try:
            with pytest.raises(TypeError, match=message.format(branches[0].id)):
                await score_branches(scorer, branches)
        finally:
            branches[0].release()

    decoder.run(score())


def test_an_ensemble_is_the_mean_of_its_scorers() -> None:
    decoder = scripted_decoder(lambda prefix, k: (f"say {k}", "eos"))

    async def search() -> None:
        root = await decoder.root("Q: ")
        branches = root.fork(3)
        await gather(branch.step() for branch in branches)
        mean = await score_branches(ensemble(scorer(len), scorer(lambda text: float(text[-1]))), branches)
        assert mean == [2.5, 3.0, 3.5]
        with pytest.raises(ScorerError, match="scorer ensemble raised ScorerError: scorer scripted_scorer"):
            await score_branches(ensemble(scorer(len), scorer(lambda text: 1 / 0)), branches)
        for branch in (root, *branches):
            branch.release()

    decoder.run(search())
    with pytest.raises(ValueError, match="scorers: got nothing"):
        ensemble()
    with pytest.raises(TypeError, match="scorer: got int"):
        ensemble(3)  # type: ignore[arg-type]
