"""Bandits over budgets beside plain transcriptions: who gets the next sample, and which setting stays."""

import math
import random
from dataclasses import dataclass

import pytest
from plain_scripts import number
from scripted import counted, scorer, scripted_decoder
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import (
    Allotted,
    Arm,
    Setting,
    Strategy,
    allot_samples,
    beam_search,
    best_of_n,
    halve_settings,
    revisions,
)
from tts_decode.select import better_half, halving_rounds, next_question


@dataclass(frozen=True)
class Question:
    prompt: str
    right: str | None = None

    @property
    def verify(self):
        return None if self.right is None else lambda text: float(text == self.right)


# --- the rules


def test_a_question_without_samples_comes_first():
    for rule in ("uniform", "ucb", "thompson"):
        assert next_question([[1.0], [], []], rule, rng=random.Random(0)) == 1


def test_the_rules_by_hand():
    """UCB of 3 and 1 samples: 0.5 + sqrt(ln 4 / 3) = 1.180, and 0.1 + sqrt(ln 4) = 1.277."""
    rewards = [[0.5, 0.5, 0.5], [0.1]]
    assert next_question(rewards, "ucb") == 1
    assert next_question(rewards, "ucb", exploration=0.5) == 0  # 0.840 and 0.689
    assert next_question(rewards, "uniform") == 1
    assert next_question([[0.0], [0.0]], "uniform") == 0


def test_thompson_prefers_what_succeeded():
    rng = random.Random(1)
    picks = [next_question([[0.0] * 5, [1.0] * 5], "thompson", rng=rng) for _ in range(200)]
    assert sum(picks) > 190


def test_successive_halving_by_hand():
    """Karnin et al.: 8 arms and 48 pulls are 3 rounds of 16 pulls: 2, 4 and 8 of each arm that is left."""
    assert halving_rounds(8, 48) == [(8, 2), (4, 4), (2, 8)]
    assert halving_rounds(5, 40) == [(5, 2), (3, 4), (2, 6)]
    assert halving_rounds(1, 3) == [(1, 3)]
    assert better_half([0.2, 0.9, 0.2, 0.9, 0.1]) == [0, 1, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: next_question([]), "rewards: got no questions"),
        (lambda: next_question([[1.0]], "best"), "rule: got 'best', expected one of uniform, ucb, thompson"),
        (lambda: next_question([[1.0]], "thompson"), "rng: got None"),
        (lambda: halving_rounds(0, 3), "arms: got 0"),
        (lambda: halving_rounds(4, 7), "pulls: got 7 for 4 arms, expected at least 8"),
        (lambda: better_half([math.nan]), r"values\[0\]: got nan"),
    ],
)
def test_bad_arguments_of_the_rules(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- samples


def reward_of(text):
    return (number(text) % 8) / 8


def script(prefix, k):
    return f"= {number(prefix, k) % 100}", "eos"


def plain(prompts, max_samples, rule, threshold, batch):
    """Question by question: texts in the order in which they are drawn; one question at a time."""
    ask = counted(script)
    texts = {prompt: [] for prompt in prompts}
    open_questions, left = list(prompts), max_samples
    while open_questions and left:
        total = sum(len(texts[prompt]) for prompt in open_questions)

        def bound(prompt, total=total):
            count = len(texts[prompt])
            if not count:
                return math.inf
            if rule == "uniform":
                return -count
            return sum(map(reward_of, texts[prompt])) / count + math.sqrt(math.log(total) / count)

        chosen = max(open_questions, key=bound)
        for _ in range(min(batch, left)):
            texts[chosen].append(ask(chosen)[0])
            left -= 1
        if max(map(reward_of, texts[chosen])) >= threshold:
            open_questions.remove(chosen)
    return texts


@pytest.mark.parametrize("rule", ["uniform", "ucb"])
@pytest.mark.parametrize(("threshold", "batch"), [(0.85, 1), (0.85, 3), (2.0, 2)])
def test_samples_go_where_the_paper_sends_them(rule, threshold, batch):
    prompts = [f"question {i}: " for i in range(6)]
    expected = plain(prompts, 40, rule, threshold, batch)
    decoder = scripted_decoder(script)
    found = decoder.run(
        allot_samples(
            decoder,
            list(map(Question, prompts)),
            max_samples=40,
            scorer=scorer(reward_of),
            rule=rule,
            threshold=threshold,
            batch=batch,
        )
    )
    assert [[c.text for c in allotted.samples] for allotted in found] == list(expected.values())
    for allotted, texts in zip(found, expected.values(), strict=True):
        assert allotted.rewards == [reward_of(text) for text in texts]
        assert allotted.best.text == max(texts, key=reward_of)
        assert allotted.passed == (max(map(reward_of, texts)) >= threshold)
        assert allotted.tokens == 3 * len(texts)
    assert decoder.stats().branches == 0


def test_what_easy_questions_leave_goes_to_hard_ones():
    """By verifiers: the first answer of the easy one is right, the hard one's tenth, the last one's none."""

    def say(prefix, k):
        return ("right" if prefix == "easy" or (prefix == "hard" and k == 9) else f"wrong {k}"), "eos"

    decoder = scripted_decoder(say)
    questions = [Question("easy", "right"), Question("hard", "right"), Question("never", "right")]
    asked = allot_samples(decoder, questions, max_samples=24, rule="uniform", parallel=2)
    found = decoder.run(asked)
    assert [allotted.passed for allotted in found] == [True, True, False]
    assert [len(allotted.samples) for allotted in found] == [1, 10, 13]
    assert found[1].best.text == "right"


def test_a_budget_that_does_not_reach_all_leaves_the_last_without():
    decoder = scripted_decoder(script)
    questions = [Question(f"q{i}", "x") for i in range(3)]
    found = decoder.run(allot_samples(decoder, questions, max_samples=5, batch=4, parallel=3))
    assert [len(allotted.samples) for allotted in found] == [4, 1, 0]
    assert found[2] == Allotted()
    assert found[2].best is None
    assert decoder.run(allot_samples(decoder, [], max_samples=5)) == []


@pytest.mark.parametrize("by", ["scorer", "verifier"])
def test_a_question_whose_judge_fails_keeps_its_samples_and_the_others_go_on(by):
    """The second answer of the first question has no reward: it gets no third one."""
    asked = []

    def reward(text):
        asked.append(text)
        if text == "a 1":
            raise RuntimeError("no score")
        return 0.0

    decoder = scripted_decoder(lambda prefix, k: (f"{prefix} {k}", "eos"))
    judged = [Judged(call=reward, prompt=prompt) for prompt in "ab"]
    options = {"scorer": scorer(reward)} if by == "scorer" else {}
    first, second = decoder.run(allot_samples(decoder, judged, max_samples=6, rule="uniform", **options))
    assert [c.text for c in first.samples] == ["a 0"]
    assert first.rewards == [0.0]
    assert "raised RuntimeError: no score" in first.stopped
    assert ("scorer" if by == "scorer" else "the verifier of questions[0]") in first.stopped
    assert [c.text for c in second.samples] == [f"b {k}" for k in range(4)]
    assert second.stopped is None
    assert asked == ["a 0", "b 0", "a 1", "b 1", "b 2", "b 3"]
    assert decoder.stats().branches == 0


def test_a_question_that_does_not_fit_is_left_out():
    decoder = TreeDecoder(tiny_model(), byte_tokenizer(), sampling=SamplingParams(max_tokens=4))
    questions = [Question("long " * 120, "y"), Question("b", "y")]
    first, second = decoder.run(allot_samples(decoder, questions, max_samples=4))
    assert "the model allows 512" in first.stopped
    assert not first.samples
    assert len(second.samples) == 3
    assert decoder.stats().branches == 0


def test_rewards_that_thompson_cannot_take_are_refused_at_the_first():
    decoder = scripted_decoder(lambda prefix, k: ("x", "eos"))
    asked = allot_samples(decoder, [Judged(-0.5)], max_samples=4, rule="thompson")
    with pytest.raises(
        ValueError, match=r"^rule: got 'thompson' with the reward -0.5 of questions\[0\], exp"
    ):
        decoder.run(asked)
    assert len(decoder.complete.calls) == 1
    assert decoder.stats().branches == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_samples": 0}, "max_samples: got 0"),
        ({"batch": 0}, "batch: got 0"),
        ({"parallel": 0}, "parallel: got 0"),
        ({"rule": "best"}, "rule: got 'best'"),
        ({"exploration": -1}, "exploration: got -1"),
        ({"threshold": math.nan}, "threshold: got nan"),
        ({}, r"questions\[1\]: got one without a verifier"),
    ],
)
def test_bad_options_are_named_before_anything_is_sampled(options, message):
    decoder = scripted_decoder(script)
    questions = [Question("a", "x"), Question("b", "x" if options else None)]
    with pytest.raises(ValueError, match=message):
        decoder.run(allot_samples(decoder, questions, **({"max_samples": 4} | options)))
    assert not decoder.complete.calls


# --- settings


@dataclass(frozen=True)
class Hard:
    prompt: str

    def verify(self, text):
        return float("right" in text)


async def tells_its_size(run, *, n):
    """n answers, each behind the text "with n"."""
    branches = run.fork(run.root, n)
    for branch in branches:
        await run.extend(branch, f"with {n} ")
        await run.complete(branch)
        run.end(branch)
    return await run.result()


@pytest.mark.parametrize(("price", "expected"), [(0.0, 8), (0.01, 4), (0.2, 1)])
def test_halving_takes_the_arm_that_is_worth_its_tokens(price, expected):
    """With n answers of 3 tokens each, min(n, 4) of 4 questions are solved."""

    def say(prefix, k):
        _, _, hard, _, n = prefix.split()
        return ("= right" if int(n) > int(hard) else "= wrong"), "eos"

    def value(n):
        return sum(n > hard for hard in range(4)) / 4 - price * 3 * n

    sizes = [8, 1, 2, 4]
    arms = [Arm(Setting(Strategy(tells_its_size, "")), n) for n in sizes]
    decoder = scripted_decoder(say)
    questions = [Hard(f"round {i // 4}: {i % 4} ") for i in range(12)]
    best = decoder.run(halve_settings(decoder, questions, arms, max_searches=32, price=price))
    assert decoder.stats().branches == 0
    # 2 rounds of 16 searches: 4 questions for each of 4 arms, then 8 for each of the better 2.
    order = sorted(range(4), key=lambda i: (-value(sizes[i]), i))
    assert [len(arm.rewards) for arm in arms] == [12 if i in order[:2] else 4 for i in range(4)]
    assert best is arms[order[0]]
    assert best.n == expected
    assert best.value(price) == pytest.approx(value(expected))
    assert best.tokens == [3 * expected] * 12
    assert str(best) == f"tells_its_size() at {expected}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_searches": 1}, "pulls: got 1 for 2 arms"),
        ({"max_searches": 20}, "questions: got 3, expected at least 10 for 20 searches of 2 arms"),
        ({"price": -1.0}, "price: got -1"),
        ({"arms": [Arm(Setting(beam_search), 3)]}, "beam_width: got 4 of beam_search, expected a divisor"),
        ({"arms": [Arm(Setting(revisions), 0)]}, "n: got 0"),
        ({"arms": []}, "arms: got 0"),
    ],
)
def test_bad_arms_are_named_before_anything_is_searched(options, message):
    decoder = scripted_decoder(script)
    asked = {"arms": [Arm(Setting(best_of_n), 1), Arm(Setting(best_of_n), 2)], "max_searches": 4} | options
    questions = [Question(f"q{i}", "x") for i in range(3)]
    with pytest.raises(ValueError, match=message):
        decoder.run(halve_settings(decoder, questions, asked.pop("arms"), **asked))
    assert not decoder.complete.calls


class Judged:
    """A question whose verifier returns what it is made with, or calls that."""

    def __init__(self, returned=None, *, call=None, prompt="Q"):
        self.prompt = prompt
        self.verify = call or (lambda text: returned)


@pytest.mark.parametrize(
    ("returned", "error"),
    [(math.nan, ValueError), (math.inf, ValueError), ("yes", TypeError), (None, TypeError)],
)
def test_what_a_verifier_returns_is_a_number_or_refused_at_once(returned, error):
    decoder = scripted_decoder(lambda prefix, k: ("a", "eos"))
    questions = [Judged(0.0), Judged(returned)]
    with pytest.raises(error, match=r"questions\[1\]"):
        decoder.run(allot_samples(decoder, questions, max_samples=2))
    arms = [Arm(Setting(best_of_n), 1)]
    with pytest.raises(error, match=r"questions\[1\]"):
        decoder.run(halve_settings(decoder, questions, arms, max_searches=2, scorer=scorer(len)))
    assert decoder.stats().branches == 0


def test_a_verifier_may_say_true():
    decoder = scripted_decoder(lambda prefix, k: ("a", "eos"))
    (found,) = decoder.run(allot_samples(decoder, [Judged(True)], max_samples=3))
    assert found.rewards == [1.0]
    assert found.passed
