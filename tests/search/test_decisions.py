"""A search's chosen candidate and its votes, against a plain transcription of the four rules."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict

import pytest
from scripted import run_scripted, scripted_decoder
from search_options import SMALL, length_mod_3, small_options, vowels
from tiny_searches import run, search_decoder
from tts_decode.rewards import verifier
from tts_decode.search import STRATEGIES, self_consistency
from tts_decode.search.decisions import Decision
from tts_decode.search.result import Candidate
from tts_decode.select import vote_weights

RULES = ("max", "last", "weighted", "majority")


def plain_decision(candidates, rule, extract):
    """(the candidates that may be chosen, votes), straight from the words."""
    whole = [c for c in candidates if c.finish_reason not in (None, "budget")] or list(candidates)
    pool = [c for c in whole if c.tokens] or whole
    scored = [c.score for c in pool if c.score is not None]
    votes = defaultdict(float)
    for c in pool:
        answer = extract(c.text)
        if answer is None:
            continue
        if rule == "weighted" and scored:
            ours = 0.0 if c.score is None else c.score
            if min(scored) < 0:
                ours = 0.0 if c.score is None else math.exp(c.score)
            votes[answer] += ours
        else:
            votes[answer] += 1.0
    best = max(votes.values(), default=0.0)
    first = next((answer for answer in votes if votes[answer] == best), None)
    backers = [c for c in pool if rule in ("max", "last") or extract(c.text) == first]

    def rank(c):
        if rule == "last" and c.scores:
            return c.scores[-1]
        return -math.inf if c.score is None else c.score

    top = max(rank(c) for c in backers)
    winners = [c for c in backers if rank(c) == top]
    if top == -math.inf and rule in ("weighted", "majority"):
        means = [c.logprob / max(len(c.tokens), 1) for c in winners]
        winners = [winners[means.index(max(means))]]
    return winners[0], dict(votes)


def draw(rng: random.Random, index: int, kind: str) -> Candidate:
    scores = tuple(
        round(rng.uniform(-2 if kind == "negative" else 0, 1), 1) for _ in range(rng.randint(0, 3))
    )
    score = None if kind == "unscored" or rng.random() < 0.1 else round(rng.uniform(0, 1), 1)
    if kind == "negative" and score is not None:
        score = -score
    return Candidate(
        text=rng.choice(["4", "5", "6", "none"]),
        tokens=(1,) * rng.choice([0, 1, 2, 5]),
        logprob=-rng.uniform(0.1, 9),
        score=score,
        scores=scores,
        finish_reason=rng.choice(["eos", "eos", "stop", "budget", None]),
        node=index,
    )


@pytest.mark.parametrize("kind", ["positive", "negative", "unscored"])
@pytest.mark.parametrize("rule", RULES)
def test_a_decision_equals_its_transcription(rule, kind):
    rng = random.Random(f"{rule} {kind}")

    def extract(text):
        return None if text == "none" else text

    for _ in range(300):
        candidates = [draw(rng, i, kind) for i in range(rng.randint(1, 7))]
        index, votes = asyncio.run(Decision(rule, extract)(candidates))
        expected, tally = plain_decision(candidates, rule, extract)
        assert candidates[index].node == expected.node
        assert votes == pytest.approx(tally)
        assert list(votes.values()) == sorted(votes.values(), reverse=True)


def test_the_rules_differ_on_a_set_made_for_it():
    rows = [("7", 0.9, 0.2), ("5", 0.5, 0.95), ("4", 0.5, 0.5), ("4", 0.6, 0.4), ("3", 0.1, 0.1)]
    rows += [("3", 0.2, 0.1), ("3", 0.1, 0.1)]
    candidates = [
        Candidate(text, (1,), -1.0, score, (score, last), "eos", i)
        for i, (text, score, last) in enumerate(rows)
    ]
    chosen = {rule: asyncio.run(Decision(rule, str)(candidates))[0] for rule in RULES}
    assert chosen == {"max": 0, "last": 1, "weighted": 3, "majority": 5}


@pytest.fixture(scope="module")
def decoder():
    return search_decoder()


OWN_RULE = {"reward_guided_tree_search", "forest_of_thought"}  # "max" means their own reward
CONVERTED = sorted(
    name for name, made in STRATEGIES.items() if made.family != "own" and "decide_by" in made.parameters
)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CONVERTED)
def test_every_strategy_ends_by_the_rule_that_it_is_given(decoder, name, rule):
    options = small_options(name) | {"decide_by": rule, "extract": length_mod_3}
    if "scorer" in STRATEGIES[name].parameters and "scorer" not in SMALL[name]:
        options["scorer"] = verifier(vowels)
    result = run(decoder, name, **options)
    expected, votes = plain_decision(result.candidates, rule, length_mod_3)
    assert result.votes
    if name == "forest_of_thought":  # decides between the best answers of its trees
        assert set(result.votes) <= {"0", "1", "2"}
        return
    assert result.votes == pytest.approx(votes)
    if rule in ("weighted", "majority") or name not in OWN_RULE | {"sample_scrutinize", "self_calibration"}:
        assert result.best.score == expected.score
        assert result.best.text == expected.text


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", sorted(SMALL))
def test_votes_are_always_told(decoder, name):
    assert run(decoder, name, **small_options(name)).votes


def test_weights_of_scores_beyond_what_exponentials_hold_keep_their_ratios():
    for shift in (-1000.0, 0.0, 800.0):
        first, second = vote_weights([shift - 1.0, shift - 3.0, -2000.0])[:2]
        assert 0 < second < first < math.inf
        assert first / second == pytest.approx(math.exp(2))
    assert vote_weights([-1.0, 2.0]) == [math.exp(-1), math.exp(2)]


def test_self_consistency_counts_exponentials_of_log_probabilities():
    texts = ["a", "b", "b"]
    scores = {"a": -1.0, "b": -2.0}
    decoder = scripted_decoder(lambda prefix, k: (texts[k], "eos"))
    result = run_scripted(
        decoder, self_consistency, "Q: ", n=3, scorer=verifier(lambda text: scores[text]), extract=str
    )
    assert result.votes == pytest.approx({"a": math.exp(-1), "b": 2 * math.exp(-2)})
    assert result.best.text == "a"
