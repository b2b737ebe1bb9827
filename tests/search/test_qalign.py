"""QAlign: the chain against a plain transcription, its law, and what it keeps of each proposal.

Statistical tests use fixed seeds; the bound is a chi-square p-value of 1e-4.
"""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_scripts import PlainModel, asked, number, random_score, step_sampling
from scipy.stats import chisquare
from scripted import EOS, run_scripted, scorer, scripted_decoder, words
from step_searches import SEEDS, search
from tts_decode import Budget
from tts_decode.completions.completion import Completion
from tts_decode.completions.decoder import TextDecoder
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.search import best_of_n, qalign
from tts_decode.select import expected_gains, rouge_1


def plain_states(model, reward, rng, *, states, beta):
    """QUEST's chain: uniform cut, suffix from the model, Metropolis-Hastings; a state is its tokens, an end
    token an empty one."""

    def complete(tokens):
        ended = False
        while not ended:
            text, ended = model.step("Q: " + "".join(tokens))
            tokens = [*tokens, *words(text)]
        return [*tokens, ""]

    state = complete([])
    chain = [state]
    while len(chain) < states:
        other = complete(state[: rng.randrange(len(state))])
        log_ratio = (reward("".join(other)) - reward("".join(state))) / beta
        log_ratio += math.log(len(state) / len(other))
        if rng.random() < math.exp(min(0.0, log_ratio)):
            state = other
        chain.append(state)
    return chain


def plain_chain(*args, **options):
    """The texts of its states."""
    return ["".join(tokens) for tokens in plain_states(*args, **options)]


def long_step_script(seed):
    """Steps of two or three words, so that most cuts lie inside a step; ends as `step_script`."""

    def script(prefix, k):
        drawn, steps = number(seed, prefix, k), prefix.count("\n")
        if steps >= 3 or (steps > 0 and drawn % 3 == 0):
            return f"so {drawn % 5}", "eos"
        return " ".join(["w" + str(drawn % 89)] * (1 + drawn % 2)) + "\n", "stop_string"

    return script


def said(text):
    """The number that a text of the script ends with."""
    return text.split()[-1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("beta", "burn_in"), [(0.1, 0), (1.0, 5)])
def test_qalign(seed, beta, burn_in):
    reward = random_score(seed)
    model = PlainModel(long_step_script(seed))
    rng = random.Random(random.Random(seed).getrandbits(64))
    chain = plain_chain(model, reward, rng, states=25, beta=beta)[burn_in:]
    options = {"max_samples": 25, "beta": beta, "burn_in": burn_in, "scorer": scorer(reward)}
    decoder, result = search(qalign, long_step_script(seed), seed=seed, **options)
    assert [c.text for c in result.candidates] == chain
    assert [c.score for c in result.candidates] == [reward(text) for text in chain]
    assert asked(decoder) == model.asked
    assert 1 < len(set(chain)) < 25  # some were accepted, some not
    votes = Counter(said(text) for text in chain)
    assert result.votes == votes
    winner = next(iter(result.votes))
    assert votes[winner] == max(votes.values())
    assert result.best.score == max(reward(text) for text in chain if said(text) == winner)


def test_qalign_states_have_the_tilted_law():
    """All texts of up to two of two words: every 5th of 3000 states against p exp(reward / beta)."""
    end = {0: 0.2, 1: 0.4, 2: 1.0}  # number of words -> P(end) after them
    letter = {"": 0.7, "a": 0.4, "b": 0.9}  # P(a) after a text
    rewards = {"": 0.1, "a": 0.0, "b": 0.3, "aa": 0.4, "ab": -0.1, "ba": -0.2, "bb": 0.8}
    beta = 0.4
    rng = random.Random(2)

    def said(text):
        return "".join(char for char in text if char in "ab")

    def script(prefix, k):
        """The rest of the answer in one step: the cut then lies inside a step."""
        before = so_far = said(prefix)
        while rng.random() >= end[len(so_far)]:
            so_far += "a" if rng.random() < letter[so_far] else "b"
        return "".join(f"{char} " for char in so_far[len(before) :]), "eos"

    law = {}
    for text in rewards:
        p = end[len(text)]
        for i, char in enumerate(text):
            p *= (1 - end[i]) * (letter[text[:i]] if char == "a" else 1 - letter[text[:i]])
        law[text] = p * math.exp(rewards[text] / beta)
    options = {"max_samples": 3000, "beta": beta, "scorer": scorer(lambda text: rewards[said(text)])}
    _, result = search(qalign, script, seed=1, **options)
    states = [said(c.text) for c in result.candidates[::5]]
    counts, total = Counter(states), sum(law.values())
    expected = [len(states) * p / total for p in law.values()]
    assert min(expected) > 5
    assert chisquare([counts[text] for text in law], expected).pvalue > 1e-4


def plain_rouge_1(one, other):
    """F1 of the words' overlap, precision and recall apart."""
    left, overlap = list(other), 0
    for word in one:
        if word in left:
            left.remove(word)
            overlap += 1
    precision, recall = overlap / len(one), overlap / len(other)
    return 2 * precision * recall / (precision + recall) if overlap else 0.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ids", [True, False])
def test_qalign_takes_the_state_of_least_risk_for_free_text(seed, ids):
    """Its authors' `rouge1_sparse` and `pick_mat`: mean F1 over all states, the first of the best."""
    reward = random_score(seed)
    rng = random.Random(random.Random(seed).getrandbits(64))
    states = plain_states(PlainModel(long_step_script(seed)), reward, rng, states=20, beta=0.5)
    chain = ["".join(tokens) for tokens in states]
    units = states if ids else [text.split() for text in chain]
    gains = [sum(plain_rouge_1(a, b) for b in units) / len(units) for a in units]
    decoder = scripted_decoder(long_step_script(seed))
    if not ids:
        complete = decoder.complete

        async def without_ids(request):
            said = await complete(request)
            return replace(said, tokens=(-1,) * len(said.tokens))

        decoder = TextDecoder(without_ids)
    options = {"max_samples": 20, "beta": 0.5, "decide_by": "mbr", "scorer": scorer(reward)}
    result = run_scripted(decoder, qalign, "Q: ", sampling=step_sampling(seed), **options)
    assert [c.text for c in result.candidates] == chain
    best = max(gains)
    assert result.answer in {text for text, gain in zip(chain, gains, strict=True) if gain > best - 1e-9}
    assert result.best.score == reward(result.answer)
    assert result.votes == Counter(said(text) for text in chain)


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=7))
def test_expected_gains_are_means_of_rouge_1(samples):
    expected = [sum(plain_rouge_1(a, b) for b in samples) / len(samples) for a in samples]
    assert expected_gains(samples) == pytest.approx(expected)
    assert rouge_1(samples[0], samples[-1]) == pytest.approx(plain_rouge_1(samples[0], samples[-1]))


def test_rouge_1_of_nothing_is_0():
    assert rouge_1([], [1]) == rouge_1([], []) == 0


def test_qalign_chains_are_independent_of_how_they_interleave():
    """Two chains, the first of them slow or fast: the same states come of each."""

    def states(latency):
        options = {"max_samples": 20, "parallel": 2, "scorer": scorer(random_score(3))}
        _, result = search(qalign, long_step_script(3), seed=3, latency=latency, **options)
        return Counter(c.text for c in result.candidates), result.votes, result.best.text

    even = states(None)
    assert sum(even[0].values()) == 20
    assert states(lambda prefix, k: 3 * (len(prefix) % 2)) == even


@pytest.mark.parametrize("tokens", range(3, 60, 7))
def test_qalign_keeps_what_the_budget_paid_for(tokens):
    """Whole candidates are the chain's first states, and the answer is one of them if there are any."""
    options = {"max_samples": 30, "burn_in": 2, "scorer": scorer(random_score(2))}
    _, free = search(qalign, long_step_script(2), seed=2, **(options | {"burn_in": 0}))
    states = [c.text for c in free.candidates]
    _, short = search(qalign, long_step_script(2), seed=2, budget=Budget(max_tokens=tokens), **options)
    whole = [c.text for c in short.candidates if c.complete]
    assert short.stopped is not None
    if whole and len(short.candidates) > 2:
        assert whole == states[2 : 2 + len(whole)]
    elif whole:
        assert whole[0] in states[:2]
    assert not whole or short.answer in whole


def test_qalign_keeps_the_prefix_and_drops_the_rest():
    """A proposal's node hangs inside the step that the cut went through, and says how much of it it took."""
    options = {"max_samples": 30, "beta": 10.0, "scorer": scorer(random_score(0))}
    _, result = search(qalign, long_step_script(0), seed=0, **options)
    cut = [node for node in result.tree if node.at is not None]
    assert cut
    assert all(0 < node.at < len(result.tree[node.parent].tokens) for node in cut)


def test_qalign_needs_token_texts():
    """An engine that does not tell where its tokens end cannot be cut there, and says so."""

    async def whole(request):
        return Completion("one two three", "eos", (5, 6, 7, EOS))

    decoder = TextDecoder(whole)
    with pytest.raises(UnsupportedByEngineError, match="inside a step whose token texts"):
        run_scripted(
            decoder, qalign, "Q: ", max_samples=20, sampling=step_sampling(0), scorer=scorer(lambda text: 0.5)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta: got 0"),
        ({"max_samples": 5, "parallel": 2}, "parallel: got 2, expected a divisor of max_samples = 5"),
        ({"max_samples": 8, "parallel": 2, "burn_in": 4}, "burn_in: got 4, expected less than the 4 states"),
        ({"burn_in": -1}, "burn_in: got -1"),
        ({"decide_by": "visits"}, "decide_by: got 'visits'"),
    ],
)
def test_qalign_names_bad_options(options, message):
    decoder = scripted_decoder(long_step_script(0))
    with pytest.raises(ValueError, match=message):
        run_scripted(decoder, qalign, "Q: ", scorer=scorer(lambda text: 0.5), **options)
    assert not decoder.complete.calls


def test_qalign_with_one_state_is_one_sample():
    result = run_scripted(
        scripted_decoder(long_step_script(4)), qalign, "Q: ", max_samples=1, scorer=scorer(lambda text: 0.5)
    )
    alone = run_scripted(
        scripted_decoder(long_step_script(4)), best_of_n, "Q: ", n=1, scorer=scorer(lambda text: 0.5)
    )
    assert result.answer == alone.answer
