"""The number of whole answers and their votes, for each strategy against a plain transcription."""

import math
from collections import Counter

import pytest
import torch
from answer_sampler import QUESTION, Sampler, sampled, tally
from plain_scripts import answer_of, draw
from plain_selection import plain_kept
from scipy import integrate
from scripted import run_scripted, scorer, scripted_decoder, words
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder, search
from tts_decode.errors import UnsupportedByEngineError


@pytest.fixture(scope="module")
def decoder():
    return TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20)


# -- adaptive consistency


def plain_adaptive_consistency(texts, threshold):
    """Sample by sample, until the integral over the first two answers' shares is large enough."""
    for used in range(1, len(texts) + 1):
        (_, a), (_, b) = [*tally(map(answer_of, texts[:used])).most_common(2), ("", 0)][:2]
        above, all_of_it = (
            integrate.quad(lambda x, a=a, b=b: x**a * (1 - x) ** b, low, 1)[0] for low in (0.5, 0)
        )
        if above / all_of_it >= threshold:
            break
    return texts[:used]


@pytest.mark.parametrize("seed", range(6))
def test_adaptive_consistency_stops_where_the_paper_stops(seed):
    script = Sampler(seed, kinds=3)
    used = plain_adaptive_consistency(script.texts(20), 0.9)
    result = sampled(
        script, search.adaptive_consistency, max_samples=20, parallel=1, threshold=0.9, extract=answer_of
    )
    assert [c.text for c in result.candidates] == used
    assert result.votes == tally(map(answer_of, used))
    assert result.votes[answer_of(result.answer)] == max(result.votes.values())


def test_adaptive_consistency_samples_whole_waves():
    counts = set()
    for seed in range(6):
        script = Sampler(seed, kinds=3)
        settled = len(plain_adaptive_consistency(script.texts(20), 0.95))
        result = sampled(script, search.adaptive_consistency, max_samples=20, extract=answer_of)
        assert len(result.candidates) % 4 == 0
        assert len(result.candidates) >= settled or len(result.candidates) == 20
        counts.add(len(result.candidates))
    assert len(counts) > 1


def test_adaptive_consistency_by_all_answers_needs_more_of_them():
    script = Sampler(0, kinds=5)
    options = {"max_samples": 30, "parallel": 1, "threshold": 0.8, "extract": answer_of}
    beta, dirichlet = (
        sampled(script, search.adaptive_consistency, criterion=criterion, **options)
        for criterion in ("beta", "dirichlet")
    )
    assert len(dirichlet.candidates) >= len(beta.candidates) > 1


# -- self-calibration


def plain_self_calibration(texts, confidence, threshold, decide_by):
    """One sample after another; how many it takes, and the text (best) or answer (vote) that wins."""
    weights = Counter()
    for used, text in enumerate(texts, start=1):
        if decide_by == "max" and confidence(text) >= threshold:
            return used, text
        weights[answer_of(text)] += confidence(text)
        share = max(weights.values()) / sum(weights.values())
        if decide_by == "weighted" and used > 1 and share >= threshold:
            return used, max(weights, key=weights.get)
    if decide_by == "max":
        return used, max(texts, key=confidence)
    return used, max(weights, key=weights.get)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("decide_by", "threshold"), [("max", 0.9), ("max", 1.0), ("weighted", 0.75)])
def test_self_calibration_stops_at_the_threshold(seed, decide_by, threshold):
    def confidence(text):
        return draw(seed, text)

    script = Sampler(seed)
    used, expected = plain_self_calibration(script.texts(12), confidence, threshold, decide_by)
    result = sampled(
        script,
        search.self_calibration,
        max_samples=12,
        parallel=1,
        threshold=threshold,
        decide_by=decide_by,
        scorer=scorer(confidence),
        extract=answer_of,
    )
    assert len(result.candidates) == used
    assert (result.answer if decide_by == "max" else answer_of(result.answer)) == expected


def test_self_calibration_in_waves_takes_the_answer_that_one_by_one_would():
    def confidence(text):
        return draw("wave", text)

    script = Sampler(3)
    used, expected = plain_self_calibration(script.texts(12), confidence, 0.8, "max")
    result = sampled(script, search.self_calibration, max_samples=12, scorer=scorer(confidence))
    assert result.answer == expected
    assert len(result.candidates) == 4 * math.ceil(used / 4)


# -- RPC


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prune", [True, False])
def test_rpc_votes_by_the_mass_of_probable_samples(seed, prune):
    script = Sampler(seed)
    paths = {}
    for k, text in enumerate(script.texts(24)):
        paths.setdefault(text, math.exp(script.likelihood(k)))
    kept = plain_kept(list(paths.values())) if prune else [True] * len(paths)
    assert len(paths) < 24
    expected = tally(
        map(answer_of, paths), [p if keep else 0 for p, keep in zip(paths.values(), kept, strict=True)]
    )
    result = sampled(script, search.rpc, n=24, prune=prune, extract=answer_of)
    assert result.votes == pytest.approx(expected)
    assert answer_of(result.answer) == max(expected, key=expected.get)


def test_rpc_says_that_it_needs_log_probabilities():
    decoder = scripted_decoder(lambda prefix, k: ("1", "eos", [math.nan]))
    with pytest.raises(UnsupportedByEngineError, match="rpc weighs samples by their log-probabilities"):
        run_scripted(decoder, search.rpc, QUESTION, n=3)


# -- ModelSwitch


def plain_model_switch(scripts, n, threshold, priors):
    """Model by model; votes weigh prior x (1/k + (1 - 1/k)(1 - entropy / largest entropy))."""
    votes, asked = Counter(), 0
    for script, prior in zip(scripts, priors, strict=True):
        counts = tally(map(answer_of, script.texts(n)))
        asked += 1
        entropy = -sum(c / n * math.log2(c / n) for c in counts.values())
        even = 1 - entropy / math.log2(n)
        for answer, count in counts.items():
            votes[answer] += count * prior * (1 / n + (1 - 1 / n) * even)
        if max(counts.values()) / n >= threshold:
            break
    return asked, votes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("threshold", "priors"), [(1.0, None), (0.6, [1.0, 2.0, 0.5])])
def test_model_switch_asks_on_until_a_model_agrees_with_itself(seed, threshold, priors):
    scripts = [Sampler(seed), Sampler(seed + 100, kinds=2), Sampler(seed + 200)]
    asked, votes = plain_model_switch(scripts, 5, threshold, priors or [1, 1, 1])
    decoders = [scripted_decoder(script) for script in scripts]
    result = run_scripted(
        decoders[0],
        search.model_switch,
        QUESTION,
        n=5,
        decoders=decoders[1:],
        threshold=threshold,
        priors=priors,
        extract=answer_of,
    )
    assert [len(d.complete.calls) for d in decoders] == [5] * asked + [0] * (3 - asked)
    assert result.votes == pytest.approx(votes)
    assert answer_of(result.answer) == max(votes, key=votes.get)
    assert all(d.stats().branches == 0 for d in decoders)


@pytest.mark.parametrize("strategy", [search.model_switch, search.atts])
def test_other_models_begin_where_the_root_stands(strategy):
    said = "So far. "
    first, second = (
        scripted_decoder(
            Sampler(seed, kinds=1000), logprobs_of=lambda prefix, text: [-1.0] * len(words(text))
        )
        for seed in (1, 100)
    )
    other = {"decoders": [second]}
    if strategy is search.atts:
        other = {"target_decoder": second, "calibration": [0.1] * 9}

    async def searched():
        root = await first.root(QUESTION)
        try:
            await root.extend(said)
            return await strategy(root, n=8, extract=answer_of, **other)
        finally:
            root.release()

    result = first.run(searched())
    asked = [call.prefix for call in second.complete.calls]
    assert set(asked) == {QUESTION + said}
    assert all(candidate.text.startswith(said) for candidate in result.candidates)
    assert second.stats().branches == 0


def test_model_switch_wants_a_prior_for_each_model():
    with pytest.raises(ValueError, match="priors: got 2 entries, expected one for each of 1 models"):
        sampled(Sampler(0), search.model_switch, priors=[1, 1])


# -- NoThinking


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_thinking_votes_by_the_rank_of_a_score(seed, power):
    script, prefix = Sampler(seed), QUESTION + "<think></think>"
    samples = [script(prefix, k)[0] for k in range(9)]
    ranked = sorted(samples, key=lambda text: -draw("<think></think>" + text))
    expected = tally(map(answer_of, ranked), [(9 - rank) ** power for rank in range(9)])
    decoder = scripted_decoder(script)
    options = {"thinking": "<think></think>", "power": power, "scorer": scorer(draw), "extract": answer_of}
    result = run_scripted(decoder, search.no_thinking, QUESTION, n=9, **options)
    assert {call.prefix for call in decoder.complete.calls} == {prefix}
    assert result.votes == expected
    assert answer_of(result.answer) == max(expected, key=expected.get)


@pytest.mark.usefixtures("one_thread")
def test_no_thinking_votes_by_the_rank_of_self_certainty():
    """Kang et al.: -1/(nV) times the sum over tokens and vocabulary of log(V p), by a plain forward; then
    their Borda vote, in which the k-th of N weighs (N - k + 1)^p."""
    model, block, seen = tiny_model(), "<t></t>", {}
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=64 << 20)

    async def searched():
        root = await decoder.root("What is 2 + 3?", SamplingParams(max_tokens=24, seed=5))
        said = await root.step(max_step_tokens=3)  # what the root said before is not the sample's
        options = {"n": 7, "thinking": block, "power": 1.5, "extract": lambda text: str(len(text) % 3)}
        result = await search.no_thinking(root, **options)
        seen["prompt"] = root.tokens[: root.prompt_length]
        seen["before"] = len(said.tokens) + len(decoder.token_ids(block))
        root.release()
        return result

    result = decoder.run(searched())

    def certainty(candidate):
        tokens = [*seen["prompt"], *candidate.tokens]
        with torch.no_grad():
            p = model(torch.tensor([tokens])).logits[0].double().softmax(-1)
        first = len(seen["prompt"]) + seen["before"]
        rows = p[first - 1 : len(tokens) - 1]
        return float(-(rows * rows.shape[1]).log().sum() / rows.numel())

    whole = [c for c in result.candidates if c.complete]
    assert len({round(certainty(c), 4) for c in whole}) == len(whole) == 7
    for candidate in whole:
        assert candidate.score == pytest.approx(certainty(candidate), rel=1e-4)
    ranked = sorted(whole, key=certainty, reverse=True)
    expected = tally([str(len(c.text) % 3) for c in ranked], [(7 - rank) ** 1.5 for rank in range(7)])
    assert result.votes == pytest.approx(expected)


def test_no_thinking_without_a_scorer_says_what_a_text_engine_lacks():
    with pytest.raises(UnsupportedByEngineError, match=r"SamplingParams\.self_certainty"):
        sampled(Sampler(0), search.no_thinking, n=2)


def test_no_thinking_with_a_verifier_takes_the_best():
    script, prefix = Sampler(1), QUESTION + "<t/>"
    expected = max((script(prefix, k)[0] for k in range(6)), key=lambda text: draw("<t/>" + text))
    result = sampled(script, search.no_thinking, n=6, scorer=scorer(draw), decide_by="max", thinking="<t/>")
    assert result.answer == "<t/>" + expected


@pytest.mark.usefixtures("one_thread")
def test_no_thinking_computes_the_block_once(decoder):
    async def searched():
        root = await decoder.root("What is 2 + 3?", SamplingParams(max_tokens=20, seed=5))
        before = decoder.stats().forward_tokens
        result = await search.no_thinking(root, n=6, thinking="<think></think>")
        fed = decoder.stats().forward_tokens - before
        root.release()
        return result, fed

    result, fed = decoder.run(searched())
    forced = len("<think></think>")
    assert [node.forced for node in result.tree[:3]] == [False, True, False]
    assert all(c.text.startswith("<think></think>") for c in result.candidates)
    assert fed == forced + sum(len(c.tokens) - forced - 1 for c in result.candidates)


# -- options


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (search.adaptive_consistency, {"parallel": 0}, "parallel: got 0, expected >= 1"),
        (search.adaptive_consistency, {"threshold": 1.0}, "threshold: got 1.0"),
        (search.adaptive_consistency, {"criterion": "gamma"}, "criterion: got 'gamma'"),
        (search.self_calibration, {"threshold": 0.0}, "threshold: got 0.0"),
        (search.self_calibration, {"decide_by": "sum"}, "decide_by: got 'sum'"),
        (search.model_switch, {"threshold": 1.5}, "threshold: got 1.5"),
        (search.no_thinking, {"decide_by": "vote"}, "decide_by: got 'vote'"),
        (search.no_thinking, {"power": math.nan}, "power: got nan"),
        (search.st_bon, {"tau_coeff": -1.0}, "tau_coeff: got -1.0"),
        (search.st_bon, {"consistency": "layers"}, "consistency: got 'layers'"),
        (search.sample_scrutinize, {"margin": 2.0}, "margin: got 2.0"),
        (search.sample_scrutinize, {"num_verifications": 0}, "num_verifications: got 0"),
        (search.multi_verifier, {"aspects": []}, "aspects: got nothing"),
        (search.knockout, {"num_comparisons": 0}, "num_comparisons: got 0"),
        (search.b4, {"alpha_xy": 0.0}, "alpha_xy: got 0.0"),
    ],
)
def test_bad_options_are_named(strategy, options, message):
    with pytest.raises(ValueError, match=message):
        sampled(Sampler(0), strategy, **options)


def test_self_consistency_of_the_script():
    script = Sampler(7)
    result = sampled(script, search.self_consistency, n=11, extract=answer_of)
    assert result.votes == tally(map(answer_of, script.texts(11)))
