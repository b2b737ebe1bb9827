"""MAgICoRe against a plain transcription: which questions are hard, and how votes are weighed."""

import math
import random
from collections import Counter

import pytest
from plain_scripts import answer_of, draw
from refining_model import QUESTION, Model, found, refined, score_of
from scipy.special import expit
from scipy.stats import entropy
from scripted import scorer
from tts_decode import SamplingParams
from tts_decode.search import magicore
from tts_decode.select import vote_confidence

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", range(3))
def test_vote_confidence_is_the_rule_of_the_code(seed):
    rng = random.Random(seed)
    for count in range(1, 7):
        votes = [rng.random() for _ in range(count)]
        assert vote_confidence(votes) == pytest.approx(2 * (1 - expit(entropy(votes))))
        assert vote_confidence([3 * vote for vote in votes]) == pytest.approx(vote_confidence(votes))
    assert vote_confidence([5.0]) == 1
    assert vote_confidence([0.0, 0.0, 0.0]) == pytest.approx(0.5)
    assert vote_confidence([]) == 0
    with pytest.raises(ValueError, match=r"votes: got \[1.0, -0.5\]"):
        vote_confidence([1.0, -0.5])


def plain_magicore(model, n, iterations, min_reward):
    """Section 3 with the code's conditions: scores of steps and of whole answers, products of the former."""

    def process(text):
        ends = [i + 1 for i, char in enumerate(text) if char == "\n"] + [len(text)]
        return [score_of(text[:end]) for end in ends]

    def rewards(text):
        return math.prod(process(text)), draw("outcome", text)

    def easy(texts):
        majority = Counter(map(answer_of, texts)).most_common(1)[0][0]
        of_majority = [sum(rewards(text)) for text in texts if answer_of(text) == majority]
        confidences = []
        for kind in range(2):
            tally = Counter()
            for text in texts:
                tally[answer_of(text)] += rewards(text)[kind]
            confidences.append(2 * (1 - expit(entropy(list(tally.values())))))
        return sum(of_majority) / len(of_majority) >= min_reward or min(confidences) >= 0.5

    texts = [model.ask(QUESTION) for _ in range(n)]
    everything, kept, used = list(texts), list(texts), 0
    for _ in range(iterations):
        if easy(texts):
            break
        used += 1
        annotated = [
            "\n".join(
                f"{step.strip()} [score: {score:.2f}]"
                for step, score in zip(text.split("\n"), process(text), strict=True)
            )
            for text in texts
        ]
        reviews = [model.ask(f"{QUESTION}{solution} review") for solution in annotated]
        texts = [
            model.ask(f"{QUESTION}{solution} {review} refine")
            for solution, review in zip(annotated, reviews, strict=True)
        ]
        everything += texts
        kept = sorted(kept + texts, key=lambda text: -sum(rewards(text)))[:n]
    tally = Counter()
    for text in kept:
        tally[answer_of(text)] += sum(rewards(text))
    winner = tally.most_common(1)[0][0]
    best = max((t for t in kept if answer_of(t) == winner), key=lambda text: sum(rewards(text)))
    return best, everything, used


def test_magicore_refines_hard_questions_alone():
    iterations = Counter()
    for seed in range(24):
        best, everything, used = plain_magicore(Model(seed, kinds=4, steps=3), 5, 2, 0.9)
        result = refined(
            Model(seed, kinds=4, steps=3),
            magicore,
            sampling=SamplingParams(stop=("\n",), max_step_tokens=512),
            n=5,
            max_rounds=2,
            scorer=scorer(score_of),
            outcome_scorer=scorer(lambda text: draw("outcome", text)),
            reward_threshold=0.9,
            review_prompt="{question}{solution} review",
            refine_prompt="{question}{solution} {review} refine",
            extract=answer_of,
        )
        assert found(result) == sorted(everything)
        assert result.answer == best
        iterations[used] += 1
    assert set(iterations) == {0, 1, 2}


def test_magicore_votes_with_rewards_below_zero():
    def below(text):
        return -1 - 3 * score_of(text)

    model = Model(1)
    texts = [model.ask(QUESTION) for _ in range(7)]
    tally = Counter()
    for text in texts:
        tally[answer_of(text)] += math.exp(below(text))
    result = refined(
        Model(1), magicore, n=7, max_rounds=0, scorer=scorer(below), agg_strategy="last", extract=answer_of
    )
    assert result.votes == pytest.approx(dict(tally))
