"""Particles and chains against plain transcriptions, and their laws against the ones they should have.

Statistical tests use fixed seeds; the bound is a chi-square p-value of 1e-4.
"""

import asyncio
import itertools
import math
import random
import zlib
from collections import Counter

import pytest
from scipy.stats import chisquare
from scripted import EOS, run_scripted, scorer, scripted_decoder, words
from tts_decode import Budget, SamplingParams
from tts_decode.completions.completion import Completion
from tts_decode.completions.decoder import TextDecoder
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.search import best_of_n, particle_filter, particle_gibbs, qalign
from tts_decode.select import extract_answer

SEEDS = range(6)


def sampling(seed):
    return SamplingParams(stop=("\n",), max_tokens=500, seed=seed)


def number(*values):
    return zlib.crc32(repr(values).encode())


def random_script(seed, depth=6):
    """Steps of one word; after the first step one in four ends the answer, at the latest at `depth`."""

    def script(prefix, k):
        steps, drawn = prefix.count("\n"), number(seed, prefix, k)
        if steps >= depth - 1 or (steps > 0 and drawn % 4 == 0):
            return f"= {drawn % 97}", "eos"
        return f"{drawn % 9973}\n", "stop_string"

    return script


def random_score(seed, spread=1.0):
    """Scores around 1/2; a small spread leaves several particles with weight."""
    return lambda text: 0.5 + spread * (number("score", seed, text) / 2**32 - 0.5)


class Plain:
    """The model of a transcription: the same script, with no engine."""

    def __init__(self, script):
        self.script, self.asked = script, Counter()

    def __call__(self, prefix):
        k = self.asked[prefix]
        self.asked[prefix] += 1
        text, reason = self.script(prefix, k)
        return text, reason == "eos"


def asked(decoder):
    return Counter(call.prefix for call in decoder.complete.calls)


def odds(score):
    return min(max(score, 1e-7), 1 - 1e-7) / (1 - min(max(score, 1e-7), 1 - 1e-7))


def shares(scores, temperature):
    weights = [odds(score) ** (1 / temperature) for score in scores]
    return [w / sum(weights) for w in weights]


def draw_indices(weights, n, rng, systematic=False):
    if not systematic:
        return rng.choices(range(len(weights)), weights=weights, k=n)
    offset, ends = rng.random(), list(itertools.accumulate(weights))
    return [sum(end <= (i + offset) / n for end in ends) for i in range(n)]


# -- particle filter


def plain_filter(model, score, rng, *, n, rule, temperature=1.0, max_steps=40, reference=None):
    """Particles as (steps, scores, ended); algorithm 1 of Puri et al., and Giannone et al.'s annealing.

    A reference competes with what it was at each step; it is the last particle of the result."""
    free = [([], [], False) for _ in range(n if reference is None else n - 1)]
    for t in range(1, max_steps + 1):
        moved = []
        for steps, scores, ended in free:
            if not ended:
                step, ended = model("Q: " + "".join(steps))
                steps = [*steps, step]
                scores = [*scores, score("".join(steps))]
            moved.append((steps, scores, ended))
        free = moved
        if t == max_steps or all(ended for *_, ended in free):
            break
        everyone = list(free)
        if reference is not None:
            steps, scores, ended = reference
            everyone.append((steps[:t], scores[:t], ended and len(steps) <= t))
        weights = shares([scores[-1] for _, scores, _ in everyone], temperature)
        if rule == "entropic":
            share = 1 / sum(w * w for w in weights) / len(weights)
            if share < 0.5 and t / max_steps < 0.5:
                hotter = max(1.0, (1 - t / max_steps) / share)
                weights = shares([scores[-1] for _, scores, _ in everyone], temperature * hotter)
        free = [everyone[i] for i in draw_indices(weights, len(free), rng, rule != "multinomial")]
    return free if reference is None else [*free, reference]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", ["multinomial", "systematic", "entropic"])
@pytest.mark.parametrize(("n", "temperature", "max_steps"), [(6, 1.0, 8), (4, 0.4, 40), (5, 2.0, 3)])
def test_particle_filter(seed, rule, n, temperature, max_steps):
    model = Plain(random_script(seed))
    particles = plain_filter(
        model,
        random_score(seed),
        random.Random(seed),
        n=n,
        rule=rule,
        temperature=temperature,
        max_steps=max_steps,
    )
    decoder = scripted_decoder(random_script(seed))
    result = run_scripted(
        decoder,
        particle_filter,
        "Q: ",
        sampling=sampling(seed),
        n=n,
        scorer=scorer(random_score(seed)),
        resampling=rule,
        softmax_temperature=temperature,
        max_steps=max_steps,
    )
    expected = [("".join(steps), scores[-1], ended) for steps, scores, ended in particles]
    assert [(c.text, c.score, c.complete) for c in result.candidates] == expected
    assert asked(decoder) == model.asked
    best = max(expected, key=lambda particle: (particle[2], particle[1]))
    assert (result.answer, result.best.score) == best[:2]


def test_a_filter_of_equal_scores_samples_the_model():
    """Resampling then only makes ties: each particle alone is a sample of the model."""
    law = {"a\n= 1": 0.3, "a\n= 2": 0.3, "b\n= 1": 0.1, "b\n= 2": 0.3}

    def next_text(prefix, rng):
        if prefix == "Q: ":
            return ("a\n" if rng.random() < 0.6 else "b\n"), "stop_string"
        one = 0.5 if "a" in prefix else 0.25
        return ("= 1" if rng.random() < one else "= 2"), "eos"

    rng = random.Random(7)
    decoder = scripted_decoder(lambda prefix, k: next_text(prefix, rng))

    async def first_particles():
        texts = []
        for seed in range(400):
            root = await decoder.root("Q: ", sampling(seed))
            result = await particle_filter(root, n=3, scorer=scorer(lambda text: 0.5))
            texts.append(result.candidates[0].text)
            root.release()
        return texts

    counts = Counter(decoder.run(first_particles()))
    assert chisquare([counts[t] for t in law], [400 * p for p in law.values()]).pvalue > 1e-4


def test_particles_need_probabilities():
    decoder = scripted_decoder(random_script(0))
    with pytest.raises(ValueError, match=r"score=8\.0; particles need probabilities"):
        run_scripted(decoder, particle_filter, "Q: ", sampling=sampling(0), scorer=scorer(lambda text: 8.0))


@pytest.mark.parametrize("strategy", [particle_filter, particle_gibbs])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"resampling": "residual"},
            "resampling: got 'residual', expected one of 'multinomial', 'systematic'",
        ),
        ({"softmax_temperature": 0.0}, "softmax_temperature: got 0"),
        ({"max_steps": 0}, "max_steps: got 0"),
    ],
)
def test_bad_options_are_named(strategy, options, message):
    decoder = scripted_decoder(random_script(0))
    with pytest.raises(ValueError, match=message):
        run_scripted(decoder, strategy, "Q: ", scorer=scorer(lambda text: 0.5), **options)
    assert not decoder.complete.calls


def test_entropic_options_are_shares():
    with pytest.raises(ValueError, match=r"ess_threshold: got 1\.5"):
        run_scripted(
            scripted_decoder(random_script(0)), particle_filter, "Q: ", scorer=None, ess_threshold=1.5
        )


# -- its_hub, where it is installed


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", ["multinomial", "entropic"])
def test_its_hub_asks_the_model_for_the_same_steps(seed, rule, monkeypatch):
    """Its particle filters, on the same script and random numbers. The one difference is that it resamples
    once more at the end, which asks for nothing."""
    pytest.importorskip("its_hub")
    from its_hub.core.algorithms import particle_gibbs as peer
    from its_hub.core.lms.step_generation import StepGeneration

    model = Plain(random_script(seed))

    class Model:
        async def agenerate(self, messages, **options):
            said = [turns[1].content if len(turns) > 1 else "" for turns in messages]
            answers = [model("Q: " + text) for text in said]
            return [{"role": "assistant", "content": text + "END" * ended} for text, ended in answers]

    class Scorer:
        async def ascore(self, prompt, texts):
            return [random_score(seed, 0.9)(text) for text in texts]

    numbers = random.Random(seed)
    monkeypatch.setattr(peer.random, "choices", numbers.choices)
    monkeypatch.setattr(peer.np.random, "uniform", lambda low, high: numbers.random())
    steps = StepGeneration(10, "\n", "END", include_stop_str_in_output=True)
    name = "ParticleFiltering" if rule == "multinomial" else "EntropicParticleFiltering"
    asyncio.run(getattr(peer, name)(steps, Scorer()).ainfer(Model(), "Q: ", 6, return_response_only=False))

    decoder = scripted_decoder(random_script(seed))
    run_scripted(
        decoder,
        particle_filter,
        "Q: ",
        sampling=sampling(seed),
        n=6,
        max_steps=10,
        scorer=scorer(random_score(seed, 0.9)),
        resampling=rule,
    )
    assert asked(decoder) == model.asked


# -- particle Gibbs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", ["multinomial", "systematic"])
@pytest.mark.parametrize(("n", "iterations", "max_steps"), [(4, 4, 40), (3, 5, 3), (5, 1, 40)])
def test_particle_gibbs(seed, rule, n, iterations, max_steps):
    score = random_score(seed, 0.4)
    model, rng, reference, expected = Plain(random_script(seed)), random.Random(seed), None, []
    for iteration in range(iterations):
        particles = plain_filter(model, score, rng, n=n, rule=rule, max_steps=max_steps, reference=reference)
        expected += [("".join(steps), scores[-1], ended) for steps, scores, ended in particles]
        if iteration < iterations - 1:
            weights = shares([scores[-1] for _, scores, _ in particles], 1.0)
            (chosen,) = draw_indices(weights, 1, rng)
            reference = particles[chosen]
    decoder = scripted_decoder(random_script(seed))
    result = run_scripted(
        decoder,
        particle_gibbs,
        "Q: ",
        sampling=sampling(seed),
        n=n,
        max_rounds=iterations - 1,
        scorer=scorer(score),
        max_steps=max_steps,
        resampling=rule,
    )
    assert [(c.text, c.score, c.complete) for c in result.candidates] == expected
    assert asked(decoder) == model.asked


def test_particle_gibbs_references_have_the_law_of_the_state_space_model():
    """Answers of three steps: the references of many rounds are samples of the model's probability times the
    odds of each step's score. Every 5th of 1500 rounds, so that they are nearly independent.

    A reference that weighs what its finished answer scored, or what it scored a step later, fails this."""
    first, then = {"a": 0.6, "b": 0.4}, {"a": {"a": 0.4, "b": 0.6}, "b": {"a": 0.5, "b": 0.5}}
    score = {"a": 0.25, "b": 0.75, "aa": 0.65, "ab": 0.8, "ba": 0.3, "bb": 0.35}
    rng = random.Random(11)

    def letters(text):
        return "".join(char for char in text if char in "ab")

    def script(prefix, k):
        said = letters(prefix)
        law = then[said[-1]] if said else first
        text = "a" if rng.random() < law["a"] else "b"
        return f"{text}\n", "eos" if len(said) == 2 else "stop_string"

    def score_of(text):
        said = letters(text)
        return score[said[-2:]]

    law = {}
    for said in itertools.product("ab", repeat=3):
        text = "".join(said)
        p = first[text[0]] * then[text[0]][text[1]] * then[text[1]][text[2]]
        law[text] = p * math.prod(odds(score_of(text[: t + 1])) for t in range(3))
    decoder = scripted_decoder(script)
    result = run_scripted(
        decoder,
        particle_gibbs,
        "Q: ",
        sampling=sampling(5),
        n=3,
        max_rounds=1499,
        scorer=scorer(score_of),
    )
    references = [letters(c.text) for c in result.candidates[5::15]]
    counts, total = Counter(references), sum(law.values())
    expected = [len(references) * p / total for p in law.values()]
    assert len(references) == 300
    assert min(expected) > 5
    assert chisquare([counts[text] for text in law], expected).pvalue > 1e-4


def test_particle_gibbs_needs_room_beside_the_reference():
    decoder = scripted_decoder(random_script(0))
    with pytest.raises(ValueError, match="expected at least 2 unless max_rounds is 0"):
        run_scripted(decoder, particle_gibbs, "Q: ", n=1, scorer=scorer(lambda text: 0.5))


# -- QAlign


def plain_chain(model, reward, rng, *, states, beta):
    """QUEST's chain: uniform cut, suffix from the model, Metropolis-Hastings; a state is its tokens, an end
    token an empty one."""

    def complete(tokens):
        ended = False
        while not ended:
            text, ended = model("Q: " + "".join(tokens))
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
    return ["".join(tokens) for tokens in chain]


def step_script(seed):
    """Steps of two or three words, so that most cuts lie inside a step; ends as `random_script`."""

    def script(prefix, k):
        drawn, steps = number(seed, prefix, k), prefix.count("\n")
        if steps >= 3 or (steps > 0 and drawn % 3 == 0):
            return f"so {drawn % 5}", "eos"
        return " ".join(["w" + str(drawn % 89)] * (1 + drawn % 2)) + "\n", "stop_string"

    return script


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("beta", "burn_in"), [(0.1, 0), (1.0, 5)])
def test_qalign(seed, beta, burn_in):
    reward = random_score(seed)
    model = Plain(step_script(seed))
    rng = random.Random(random.Random(seed).getrandbits(64))
    chain = plain_chain(model, reward, rng, states=25, beta=beta)[burn_in:]
    decoder = scripted_decoder(step_script(seed))
    result = run_scripted(
        decoder,
        qalign,
        "Q: ",
        sampling=sampling(seed),
        max_samples=25,
        beta=beta,
        burn_in=burn_in,
        scorer=scorer(reward),
    )
    assert [c.text for c in result.candidates] == chain
    assert [c.score for c in result.candidates] == [reward(text) for text in chain]
    assert asked(decoder) == model.asked
    assert 1 < len(set(chain)) < 25  # some were accepted, some not
    votes = Counter(extract_answer(text) for text in chain)
    assert result.votes == votes
    winner = next(iter(result.votes))
    assert votes[winner] == max(votes.values())
    assert result.best.score == max(reward(text) for text in chain if extract_answer(text) == winner)


def test_qalign_states_have_the_tilted_law():
    """All texts of up to two of two words: every 5th of 3000 states against p exp(reward / beta)."""
    end = {0: 0.2, 1: 0.4, 2: 1.0}  # P(end) after so many words
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
    decoder = scripted_decoder(script)
    result = run_scripted(
        decoder,
        qalign,
        "Q: ",
        sampling=sampling(1),
        max_samples=3000,
        beta=beta,
        scorer=scorer(lambda text: rewards[said(text)]),
    )
    states = [said(c.text) for c in result.candidates[::5]]
    counts, total = Counter(states), sum(law.values())
    expected = [len(states) * p / total for p in law.values()]
    assert min(expected) > 5
    assert chisquare([counts[text] for text in law], expected).pvalue > 1e-4


def test_qalign_chains_are_independent_of_how_they_interleave():
    """Two chains, the first of them slow or fast: the same states come of each."""

    def states(latency):
        decoder = scripted_decoder(step_script(3), latency=latency)
        result = run_scripted(
            decoder,
            qalign,
            "Q: ",
            sampling=sampling(3),
            max_samples=20,
            parallel=2,
            scorer=scorer(random_score(3)),
        )
        return Counter(c.text for c in result.candidates), result.votes, result.best.text

    even = states(None)
    assert sum(even[0].values()) == 20
    assert states(lambda prefix, k: 3 * (len(prefix) % 2)) == even


@pytest.mark.parametrize("tokens", range(3, 60, 7))
def test_qalign_keeps_what_the_budget_paid_for(tokens):
    """Whole candidates are the chain's first states, and the answer is one of them if there are any."""
    options = {"sampling": sampling(2), "max_samples": 30, "burn_in": 2, "scorer": scorer(random_score(2))}
    free = run_scripted(scripted_decoder(step_script(2)), qalign, "Q: ", **(options | {"burn_in": 0}))
    states = [c.text for c in free.candidates]
    short = run_scripted(
        scripted_decoder(step_script(2)), qalign, "Q: ", budget=Budget(max_tokens=tokens), **options
    )
    whole = [c.text for c in short.candidates if c.complete]
    assert short.stopped is not None
    if whole and len(short.candidates) > 2:
        assert whole == states[2 : 2 + len(whole)]
    elif whole:
        assert whole[0] in states[:2]
    assert not whole or short.answer in whole


def test_qalign_keeps_the_prefix_and_drops_the_rest():
    """A proposal's node hangs inside the step that the cut went through, and says how much of it it took."""
    decoder = scripted_decoder(step_script(0))
    result = run_scripted(
        decoder,
        qalign,
        "Q: ",
        sampling=sampling(0),
        max_samples=30,
        beta=10.0,
        scorer=scorer(random_score(0)),
    )
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
            decoder, qalign, "Q: ", max_samples=20, sampling=sampling(0), scorer=scorer(lambda text: 0.5)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta: got 0"),
        ({"max_samples": 5, "parallel": 2}, "parallel: got 2, expected a divisor of max_samples = 5"),
        ({"max_samples": 8, "parallel": 2, "burn_in": 4}, "burn_in: got 4, expected less than the 4 states"),
        ({"burn_in": -1}, "burn_in: got -1"),
    ],
)
def test_qalign_names_bad_options(options, message):
    decoder = scripted_decoder(step_script(0))
    with pytest.raises(ValueError, match=message):
        run_scripted(decoder, qalign, "Q: ", scorer=scorer(lambda text: 0.5), **options)
    assert not decoder.complete.calls


def test_qalign_with_one_state_is_one_sample():
    result = run_scripted(
        scripted_decoder(step_script(4)), qalign, "Q: ", max_samples=1, scorer=scorer(lambda text: 0.5)
    )
    alone = run_scripted(
        scripted_decoder(step_script(4)), best_of_n, "Q: ", n=1, scorer=scorer(lambda text: 0.5)
    )
    assert result.answer == alone.answer
