"""Particle filters and particle Gibbs against plain transcriptions, and the laws that they should have.

Statistical tests use fixed seeds; the bound is a chi-square p-value of 1e-4.
"""

import asyncio
import itertools
import math
import random
from collections import Counter

import pytest
from needed import needs
from plain_scripts import PlainModel, asked, random_score, step_sampling, step_script
from scipy.stats import chisquare
from scripted import run_scripted, scorer, scripted_decoder
from step_searches import SEEDS, search
from tts_decode.search import particle_filter, particle_gibbs


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
                step, ended = model.step("Q: " + "".join(steps))
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
    model = PlainModel(step_script(seed))
    particles = plain_filter(
        model,
        random_score(seed),
        random.Random(seed),
        n=n,
        rule=rule,
        temperature=temperature,
        max_steps=max_steps,
    )
    options = {"n": n, "resampling": rule, "softmax_temperature": temperature, "max_steps": max_steps}
    options["scorer"] = scorer(random_score(seed))
    decoder, result = search(particle_filter, step_script(seed), seed=seed, **options)
    expected = [("".join(steps), scores[-1], ended) for steps, scores, ended in particles]
    assert [(c.text, c.score, c.complete) for c in result.candidates] == expected
    assert asked(decoder) == model.asked
    best = max(expected, key=lambda particle: (particle[2], particle[1]))
    assert (result.answer, result.best.score) == best[:2]


def plain_lazy_filter(model, score, rng, *, n, threshold, absorbing, temperature, max_steps):
    """Particles (steps, scores, ended) and weights: a weight is the product of odds since the last draw; with
    `absorbing` those that ended are set aside with the weight that they had."""
    particles, weights = [([], [], False)] * n, [1 / n] * n
    draws = 0
    for t in range(1, max_steps + 1):
        aside = [absorbing and ended for *_, ended in particles]
        for i, (steps, scores, ended) in enumerate(particles):
            if not ended:
                step, ended = model.step("Q: " + "".join(steps))
                steps = [*steps, step]
                particles[i] = (steps, [*scores, score("".join(steps))], ended)
        ours = [i for i in range(n) if not aside[i]]
        mass = sum(weights[i] for i in ours)
        raw = {i: weights[i] * odds(particles[i][1][-1]) ** (1 / temperature) for i in ours}
        for i in ours:
            weights[i] = mass * raw[i] / sum(raw.values())
        if t == max_steps or all(ended for *_, ended in particles):
            break
        ours = [i for i in ours if not (absorbing and particles[i][2])]
        own = [weights[i] for i in ours]
        if sum(own) ** 2 / sum(w * w for w in own) < threshold * len(own):
            draws += 1
            drawn = [ours[k] for k in rng.choices(range(len(ours)), weights=own, k=len(ours))]
            fresh = [particles[i] for i in drawn]
            for i, particle in zip(ours, fresh, strict=True):
                particles[i] = particle
                weights[i] = sum(own) / len(own)
    return particles, weights, draws


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("absorbing", [False, True])
@pytest.mark.parametrize(("n", "threshold", "temperature"), [(6, 0.5, 1.0), (5, 0.8, 0.5), (4, 0.0, 1.0)])
def test_particles_are_drawn_where_too_few_are_effective(seed, absorbing, n, threshold, temperature):
    model, rng = PlainModel(step_script(seed)), random.Random(seed)
    options = {"n": n, "absorbing": absorbing, "max_steps": 8}
    plain = {"threshold": threshold, "temperature": temperature}
    particles, weights, draws = plain_lazy_filter(model, random_score(seed), rng, **options, **plain)
    lucky = rng.choices(particles, weights=weights)[0]
    options |= {"resample_threshold": threshold, "softmax_temperature": temperature, "decide_by": "drawn"}
    scored = scorer(random_score(seed))
    decoder, result = search(particle_filter, step_script(seed), seed=seed, scorer=scored, **options)
    expected = [("".join(steps), scores[-1], ended) for steps, scores, ended in particles]
    assert [(c.text, c.score, c.complete) for c in result.candidates] == expected
    assert asked(decoder) == model.asked
    assert (result.answer, result.best.score) == ("".join(lucky[0]), lucky[1][-1])
    assert len(result.stats.selections) == draws


def test_an_absorbed_particle_outlives_better_ones():
    """One of three answers at once, and badly: published filters lose it, an absorbing one never does."""

    def script(prefix, k):
        if prefix == "Q: ":
            return ("= 0", "eos") if k == 0 else (f"{k}\n", "stop_string")
        return ("go\n", "stop_string") if prefix.count("go") < 6 else ("= 1", "eos")

    def value(text):
        return 0.02 if text == "= 0" else 0.9

    for strategy, more in ((particle_filter, {}), (particle_gibbs, {"max_rounds": 0})):
        kept = []
        for absorbing in (False, True):
            options = {"n": 3, "absorbing": absorbing, "scorer": scorer(value)} | more
            _, result = search(strategy, script, seed=3, **options)
            kept.append(sum(c.text == "= 0" for c in result.candidates))
        assert kept == [0, 1]


def test_a_final_particle_is_drawn_by_its_weight():
    value = {"= 1": 0.8, "= 2": 0.5}
    decoder = scripted_decoder(lambda prefix, k: (list(value)[k % 2], "eos"))

    async def answers(strategy, options):
        found = []
        for seed in range(400):
            decoder.complete._asked.clear()
            root = await decoder.root("Q: ", step_sampling(seed))
            result = await strategy(root, n=2, scorer=scorer(value.__getitem__), decide_by="drawn", **options)
            found.append(result.answer)
            root.release()
        return found

    law = shares([*value.values()], 1.0)
    for strategy, options in ((particle_filter, {}), (particle_gibbs, {"max_rounds": 0})):
        counts = Counter(decoder.run(answers(strategy, options)))
        assert chisquare([counts[text] for text in value], [400 * p for p in law]).pvalue > 1e-4


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
            root = await decoder.root("Q: ", step_sampling(seed))
            result = await particle_filter(root, n=3, scorer=scorer(lambda text: 0.5))
            texts.append(result.candidates[0].text)
            root.release()
        return texts

    counts = Counter(decoder.run(first_particles()))
    assert chisquare([counts[t] for t in law], [400 * p for p in law.values()]).pvalue > 1e-4


def test_particles_need_probabilities():
    decoder = scripted_decoder(step_script(0))
    with pytest.raises(ValueError, match=r"score: got 8\.0, expected a probability"):
        run_scripted(
            decoder, particle_filter, "Q: ", sampling=step_sampling(0), scorer=scorer(lambda text: 8.0)
        )


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
        ({"resample_threshold": 1.5}, r"resample_threshold: got 1\.5"),
        ({"decide_by": "lots"}, "decide_by: got 'lots'"),
    ],
)
def test_bad_options_are_named(strategy, options, message):
    decoder = scripted_decoder(step_script(0))
    with pytest.raises(ValueError, match=message):
        run_scripted(decoder, strategy, "Q: ", scorer=scorer(lambda text: 0.5), **options)
    assert not decoder.complete.calls


def test_entropic_options_are_shares():
    with pytest.raises(ValueError, match=r"ess_threshold: got 1\.5"):
        run_scripted(
            scripted_decoder(step_script(0)),
            particle_filter,
            "Q: ",
            scorer=scorer(lambda text: 0.5),
            ess_threshold=1.5,
        )


# -- its_hub, where it is installed


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", ["multinomial", "entropic"])
def test_its_hub_asks_the_model_for_the_same_steps(seed, rule, monkeypatch):
    """Its particle filters, on the same script and random numbers. The one difference is that it resamples
    once more at the end, which asks for nothing."""
    needs("its_hub")
    from its_hub.core.algorithms import particle_gibbs as peer
    from its_hub.core.lms.step_generation import StepGeneration

    model = PlainModel(step_script(seed))

    class Model:
        async def agenerate(self, messages, **options):
            said = [turns[1].content if len(turns) > 1 else "" for turns in messages]
            answers = [model.step("Q: " + text) for text in said]
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

    options = {"n": 6, "max_steps": 10, "resampling": rule, "scorer": scorer(random_score(seed, 0.9))}
    decoder, _ = search(particle_filter, step_script(seed), seed=seed, **options)
    assert asked(decoder) == model.asked


# -- particle Gibbs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", ["multinomial", "systematic"])
@pytest.mark.parametrize(("n", "iterations", "max_steps"), [(4, 4, 40), (3, 5, 3), (5, 1, 40)])
def test_particle_gibbs(seed, rule, n, iterations, max_steps):
    score = random_score(seed, 0.4)
    model, rng, reference, expected = PlainModel(step_script(seed)), random.Random(seed), None, []
    for iteration in range(iterations):
        particles = plain_filter(model, score, rng, n=n, rule=rule, max_steps=max_steps, reference=reference)
        expected += [("".join(steps), scores[-1], ended) for steps, scores, ended in particles]
        if iteration < iterations - 1:
            weights = shares([scores[-1] for _, scores, _ in particles], 1.0)
            (chosen,) = draw_indices(weights, 1, rng)
            reference = particles[chosen]
    options = {"n": n, "max_rounds": iterations - 1, "max_steps": max_steps, "resampling": rule}
    decoder, result = search(particle_gibbs, step_script(seed), seed=seed, scorer=scorer(score), **options)
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
        sampling=step_sampling(5),
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
    decoder = scripted_decoder(step_script(0))
    with pytest.raises(ValueError, match="n: got 1, expected 2 or more"):
        run_scripted(decoder, particle_gibbs, "Q: ", n=1, scorer=scorer(lambda text: 0.5))
