"""Strategies over whole answers, each against a plain transcription of its paper's algorithm."""

import asyncio
import math
import random
import zlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import integrate
from scripted import run_scripted, scorer, scripted_decoder, words
from test_select_sampling import plain_b4, plain_kept
from tiny_models import EOS, byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.rewards import verifier
from tts_decode.search import (
    adaptive_consistency,
    atts,
    b4,
    best_of_n,
    first_finish,
    knockout,
    model_switch,
    multi_verifier,
    no_thinking,
    rpc,
    sample_scrutinize,
    self_calibration,
    self_consistency,
    st_bon,
)

QUESTION = "Q: "


def draw(*values):
    """A number in [0, 1) that depends on the values alone."""
    return zlib.crc32(repr(values).encode()) / 2**32


def answer_of(text):
    return text.split()[-1]


class Sampler:
    """Answers of `kinds` different conclusions, the first ones likelier, with log-probabilities."""

    def __init__(self, seed, kinds=4):
        self.seed, self.kinds = seed, kinds

    def __call__(self, prefix, k):
        u = draw(self.seed, prefix, k)
        text = "so " * (1 + int(7 * u) % 3) + f"way{int(1000 * u) % 9} gives {int(self.kinds * u * u)}"
        logprobs = [-3 * draw(self.seed, prefix, k, i) for i in range(len(words(text)))]
        return text, "eos", logprobs

    def texts(self, n):
        return [self(QUESTION, k)[0] for k in range(n)]

    def likelihood(self, k):
        logprobs = self(QUESTION, k)[2]
        return sum(logprobs) / (len(logprobs) + 1)  # the end's token has log-probability 0


def tally(answers, weights=None):
    answers, votes = list(answers), Counter()
    for answer, weight in zip(answers, weights or [1] * len(answers), strict=True):
        votes[answer] += weight
    return votes


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
    result = run_scripted(
        scripted_decoder(script),
        adaptive_consistency,
        QUESTION,
        max_samples=20,
        parallel=1,
        threshold=0.9,
        extract=answer_of,
    )
    assert [c.text for c in result.candidates] == used
    assert result.votes == tally(map(answer_of, used))
    assert result.votes[answer_of(result.answer)] == max(result.votes.values())


def test_adaptive_consistency_samples_whole_waves():
    counts = set()
    for seed in range(6):
        script = Sampler(seed, kinds=3)
        settled = len(plain_adaptive_consistency(script.texts(20), 0.95))
        result = run_scripted(
            scripted_decoder(script), adaptive_consistency, QUESTION, max_samples=20, extract=answer_of
        )
        assert len(result.candidates) % 4 == 0
        assert len(result.candidates) >= settled or len(result.candidates) == 20
        counts.add(len(result.candidates))
    assert len(counts) > 1


def test_adaptive_consistency_by_all_answers_needs_more_of_them():
    script = Sampler(0, kinds=5)
    options = {"max_samples": 30, "parallel": 1, "threshold": 0.8, "extract": answer_of}
    beta, dirichlet = (
        run_scripted(scripted_decoder(script), adaptive_consistency, QUESTION, criterion=criterion, **options)
        for criterion in ("beta", "dirichlet")
    )
    assert len(dirichlet.candidates) >= len(beta.candidates) > 1


# -- first finish


@pytest.mark.parametrize("seed", range(4))
def test_first_finish_returns_the_first_to_end(seed):
    def latency(prefix, k):
        return 5 + int(60 * draw(seed, prefix, k))

    script = Sampler(seed)
    fastest = min(range(5), key=lambda k: latency(QUESTION, k))
    decoder = scripted_decoder(script, latency=latency)
    result = run_scripted(decoder, first_finish, QUESTION, n=5)
    assert result.answer == script.texts(5)[fastest]
    assert len(result.candidates) == 1
    assert len(decoder.complete.calls) < 5  # the slower ones were cancelled


@pytest.fixture(scope="module")
def decoder():
    return TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20)


@pytest.mark.usefixtures("one_thread")
def test_first_finish_gives_pages_back_before_the_next_forward(decoder):
    async def search():
        root = await decoder.root("What is 2 + 3?", SamplingParams(max_tokens=400, seed=5))
        before = decoder.stats()
        result = await first_finish(root, n=8)
        after = decoder.stats()
        root.release()
        return before, result, after

    before, result, after = decoder.run(search())
    assert result.best.finish_reason == "eos"
    assert after.resident_bytes == before.resident_bytes
    assert after.branches == before.branches == 1
    assert after.steps - before.steps == len(result.best.tokens) - 1  # no forward after the first end
    assert after.generated_tokens - before.generated_tokens == 8 * len(result.best.tokens)
    assert result.stats.generated_tokens == 8 * len(result.best.tokens)
    assert Counter(node.status for node in result.tree) == {"prompt": 1, "finished": 1, "pruned": 7}


# -- self-calibration


def plain_self_calibration(texts, confidence, threshold, decide_by):
    """One sample after another; how many it takes, and the text (best) or answer (vote) that wins."""
    weights = Counter()
    for used, text in enumerate(texts, start=1):
        if decide_by == "score" and confidence(text) >= threshold:
            return used, text
        weights[answer_of(text)] += confidence(text)
        share = max(weights.values()) / sum(weights.values())
        if decide_by == "vote" and used > 1 and share >= threshold:
            return used, max(weights, key=weights.get)
    if decide_by == "score":
        return used, max(texts, key=confidence)
    return used, max(weights, key=weights.get)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("decide_by", "threshold"), [("score", 0.9), ("score", 1.0), ("vote", 0.75)])
def test_self_calibration_stops_at_the_threshold(seed, decide_by, threshold):
    def confidence(text):
        return draw(seed, text)

    script = Sampler(seed)
    used, expected = plain_self_calibration(script.texts(12), confidence, threshold, decide_by)
    result = run_scripted(
        scripted_decoder(script),
        self_calibration,
        QUESTION,
        max_samples=12,
        parallel=1,
        threshold=threshold,
        decide_by=decide_by,
        scorer=scorer(confidence),
        extract=answer_of,
    )
    assert len(result.candidates) == used
    assert (result.answer if decide_by == "score" else answer_of(result.answer)) == expected


def test_self_calibration_in_waves_takes_the_answer_that_one_by_one_would():
    def confidence(text):
        return draw("wave", text)

    script = Sampler(3)
    used, expected = plain_self_calibration(script.texts(12), confidence, 0.8, "score")
    result = run_scripted(
        scripted_decoder(script), self_calibration, QUESTION, max_samples=12, scorer=scorer(confidence)
    )
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
    result = run_scripted(scripted_decoder(script), rpc, QUESTION, n=24, prune=prune, extract=answer_of)
    assert result.votes == pytest.approx(expected)
    assert answer_of(result.answer) == max(expected, key=expected.get)


def test_rpc_says_that_it_needs_log_probabilities():
    decoder = scripted_decoder(lambda prefix, k: ("1", "eos", [math.nan]))
    with pytest.raises(UnsupportedByEngineError, match="rpc weighs samples by their log-probabilities"):
        run_scripted(decoder, rpc, QUESTION, n=3)


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
        model_switch,
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


@pytest.mark.parametrize("strategy", [model_switch, atts])
def test_other_models_begin_where_the_root_stands(strategy):
    said = "So far. "
    first, second = (
        scripted_decoder(
            Sampler(seed, kinds=1000), logprobs_of=lambda prefix, text: [-1.0] * len(words(text))
        )
        for seed in (1, 100)
    )
    other = (
        {"target_decoder": second, "calibration": [0.1] * 9} if strategy is atts else {"decoders": [second]}
    )

    async def search():
        root = await first.root(QUESTION)
        try:
            await root.extend(said)
            return await strategy(root, n=8, extract=answer_of, **other)
        finally:
            root.release()

    result = first.run(search())
    asked = [call.prefix for call in second.complete.calls]
    assert set(asked) == {QUESTION + said}
    assert all(candidate.text.startswith(said) for candidate in result.candidates)
    assert second.stats().branches == 0


def test_model_switch_wants_a_prior_for_each_model():
    with pytest.raises(ValueError, match="priors: got 2 entries, expected one for each of 1 models"):
        run_scripted(scripted_decoder(Sampler(0)), model_switch, QUESTION, priors=[1, 1])


# -- NoThinking


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_thinking_votes_by_the_rank_of_the_confidence(seed, power):
    script, prefix = Sampler(seed), QUESTION + "<think></think>"
    samples = [script(prefix, k) for k in range(9)]
    ranked = sorted(range(9), key=lambda k: -sum(samples[k][2]) / (len(samples[k][2]) + 1))
    expected = tally([answer_of(samples[k][0]) for k in ranked], [(9 - rank) ** power for rank in range(9)])
    decoder = scripted_decoder(script)
    result = run_scripted(
        decoder, no_thinking, QUESTION, n=9, thinking="<think></think>", power=power, extract=answer_of
    )
    assert {call.prefix for call in decoder.complete.calls} == {prefix}
    assert result.votes == expected
    assert answer_of(result.answer) == max(expected, key=expected.get)


def test_no_thinking_with_a_verifier_takes_the_best():
    script, prefix = Sampler(1), QUESTION + "<t/>"
    expected = max((script(prefix, k)[0] for k in range(6)), key=lambda text: draw("<t/>" + text))
    result = run_scripted(
        scripted_decoder(script),
        no_thinking,
        QUESTION,
        n=6,
        scorer=scorer(draw),
        decide_by="score",
        thinking="<t/>",
    )
    assert result.answer == "<t/>" + expected


@pytest.mark.usefixtures("one_thread")
def test_no_thinking_computes_the_block_once(decoder):
    async def search():
        root = await decoder.root("What is 2 + 3?", SamplingParams(max_tokens=20, seed=5))
        before = decoder.stats().forward_tokens
        result = await no_thinking(root, n=6, thinking="<think></think>")
        fed = decoder.stats().forward_tokens - before
        root.release()
        return result, fed

    result, fed = decoder.run(search())
    forced = len("<think></think>")
    assert [node.forced for node in result.tree[:3]] == [False, True, False]
    assert all(c.text.startswith("<think></think>") for c in result.candidates)
    assert fed == forced + sum(len(c.tokens) - forced - 1 for c in result.candidates)


# -- ST-BoN


def random_samples(seed, n):
    """Word lists that go different ways after some words; the ends come late."""
    generator = random.Random(seed)
    samples = [[generator.choice("ab") for _ in range(6)] for _ in range(n)]
    return [
        first + [generator.choice("cdefgh") for _ in range(generator.randint(30, 40))] for first in samples
    ]


def plain_st_bon(samples, tau_coeff):
    """Index of the winner and the window's end: c is when all prefixes differ, tau = tau_coeff c."""
    c = next(t for t in range(1, 99) if len({tuple(s[:t]) for s in samples}) == len(samples))
    end, votes = c + max(1, int(tau_coeff * c)), Counter()
    for t in range(c + 1, end + 1):
        grams = [{tuple(s[i : i + 2]) for i in range(t - 1)} for s in samples]
        mean = [
            np.mean([1 - len(g & h) / len(g | h) for j, h in enumerate(grams) if j != i])
            for i, g in enumerate(grams)
        ]
        votes[int(np.argmin(np.round(mean, 9)))] += 1
    return min(votes, key=lambda i: (-votes[i], i)), end


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tau_coeff", [1.0, 2.0])
def test_st_bon_goes_on_with_the_sample_that_agrees_most(seed, tau_coeff):
    samples = random_samples(seed, 6)
    winner, end = plain_st_bon(samples, tau_coeff)

    def script(prefix, k):
        taken = words(prefix[len(QUESTION) :])
        same = [s for s in samples if [w + " " for w in s[: len(taken)]] == taken]
        return "".join(w + " " for w in same[k][len(taken) :]), "eos"

    calls = scripted_decoder(script)
    result = run_scripted(calls, st_bon, QUESTION, n=6, tau_coeff=tau_coeff, consistency="string")
    assert result.answer.split() == samples[winner]
    generated = 6 * end + len(samples[winner]) + 1 - end  # the winner's end is a token
    assert result.stats.generated_tokens == generated


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_st_bon_compares_mean_hidden_states(decoder, seed):
    """The votes made again from a forward of transformers' own model over each sample."""
    prompt = "What is 2 + 3?"

    async def search():
        sampling = SamplingParams(max_tokens=30, seed=seed, suppress_token_ids=(EOS,))
        root = await decoder.root(prompt, sampling)
        result = await st_bon(root, n=5, tau_coeff=4.0)
        root.release()
        return result

    result = decoder.run(search())
    tree = result.tree
    leaves = [node for node in tree if node.status in ("pruned", "finished")]
    assert len(leaves) == 5

    def tokens_of(node):
        tokens = ()
        while node.parent >= 0:
            tokens, node = (*node.tokens, *tokens), tree[node.parent]
        return tokens

    samples = {node.id: tokens_of(node) for node in leaves}
    end = min(map(len, samples.values()))
    c = next(t for t in range(1, end + 1) if len({s[:t] for s in samples.values()}) == 5)
    assert end == c + 4 * c
    assert all(len(s) == end for node, s in samples.items() if node != result.best.node)
    start, states = len(prompt.encode()), {}
    for node, sample in samples.items():
        ids = torch.tensor([[*prompt.encode(), *sample[:end]]])
        with torch.no_grad():
            states[node] = decoder.model.model(ids).last_hidden_state[0, start:].double().numpy()
    votes = Counter()
    for t in range(c + 1, end + 1):
        means = {node: state[:t].mean(0) for node, state in states.items()}
        spread = {
            node: np.mean([np.square(m - other).sum() for key, other in means.items() if key != node])
            for node, m in means.items()
        }
        votes[min(spread, key=spread.get)] += 1
    assert votes[result.best.node] == max(votes.values())
    assert decoder.keep_hidden == 0


@pytest.mark.usefixtures("one_thread")
def test_st_bon_holds_a_tenth_of_the_kv_of_best_of_n(decoder):
    """Pages that the answers take beyond the prompt's, at the most and on average over the forwards. The
    prompt fills a page, so that the target is met without help from tails that are copied."""

    async def held(strategy, **options):
        sampling = SamplingParams(max_tokens=192, max_step_tokens=64, seed=2, suppress_token_ids=(EOS,))
        root = await decoder.root("What is 22 + 33?", sampling)
        before, samples = decoder.stats().resident_bytes, []
        search = asyncio.ensure_future(strategy(root, n=16, **options))
        steps = decoder.stats().steps
        while not search.done():
            await asyncio.sleep(0)
            if (now := decoder.stats()).steps > steps:
                samples.append(now.resident_bytes - before)
                steps = now.steps
        root.release()
        return search.result(), max(samples), sum(samples) / len(samples)

    result, peak, mean = decoder.run(held(st_bon))
    full, full_peak, full_mean = decoder.run(held(best_of_n, scorer=verifier(len)))
    assert len(result.best.tokens) == len(full.best.tokens) == 192
    assert peak <= 0.1 * full_peak
    assert mean <= 0.1 * full_mean


# -- strategies in which a model judges answers


def judged(seed, kinds, reply):
    """Answers to the question, `reply(prefix, k)` to any other prompt."""
    script = Sampler(seed, kinds)
    return script, lambda prefix, k: script(prefix, k) if prefix == QUESTION else (reply(prefix, k), "eos")


VERIFY, COMPARE = "{question}verify {answer}", "{question}compare {first} | {second}"


def plain_scrutinize(texts, likelihoods, reply, k_verify, k_compare, margin):
    """Algorithm 1: verify each response, gather those near the best, most matchups won."""
    pool = list(dict.fromkeys(texts))
    scores = {
        s: sum(reply(QUESTION + "verify " + s, k).endswith("correct") for k in range(k_verify)) / k_verify
        for s in pool
    }
    best = [s for s in pool if scores[s] >= max(scores.values()) - margin - 1e-9]
    wins = Counter(dict.fromkeys(best, 0.0))
    for s, t in combinations(best, 2):
        straight = [reply(f"{QUESTION}compare {s} | {t}", k) for k in range(k_compare - k_compare // 2)]
        swapped = [reply(f"{QUESTION}compare {t} | {s}", k) for k in range(k_compare // 2)]
        for_s = sum(r.endswith("A") for r in straight) + sum(r.endswith("B") for r in swapped)
        for_t = sum(r.endswith("B") for r in straight) + sum(r.endswith("A") for r in swapped)
        wins[s] += (for_s > for_t) + (for_s == for_t) / 2
        wins[t] += (for_t > for_s) + (for_s == for_t) / 2
    return max(best, key=lambda s: (wins[s], scores[s], likelihoods[s]))


@pytest.mark.parametrize("seed", range(8))
def test_sample_scrutinize_is_algorithm_1(seed):
    def reply(prefix, k):
        u = draw(seed, prefix, k)
        if "verify" in prefix:
            return "Verdict: " + ("correct" if u < 0.7 else "wrong")
        return "Better: " + ("A" if u < 0.4 else "B" if u < 0.8 else "neither")

    sampler, script = judged(seed, 3, reply)
    texts = sampler.texts(7)
    likelihoods = {text: sampler.likelihood(k) for k, text in reversed(list(enumerate(texts)))}
    expected = plain_scrutinize(texts, likelihoods, reply, 4, 3, 0.25)
    result = run_scripted(
        scripted_decoder(script),
        sample_scrutinize,
        QUESTION,
        n=7,
        num_verifications=4,
        num_comparisons=3,
        margin=0.25,
        verify_prompt=VERIFY,
        compare_prompt=COMPARE,
    )
    assert result.answer == expected
    verified = [node for node in result.tree if node.status == "prompt" and "verify" in node.text]
    assert [len(node.sources) for node in verified] == [1] * len(set(texts))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [4, 7])
def test_knockout_is_won_by_the_winner_of_all_matches(seed, n):
    def reply(prefix, k):
        return "Better: " + "AB"[draw(seed, prefix, k) < 0.5]

    def beats(s, t):
        """Whether s wins two of three comparisons, the second one in the other order."""
        first, third = (reply(f"{QUESTION}compare {s} | {t}", k) for k in range(2))
        second = reply(f"{QUESTION}compare {t} | {s}", 0)
        return first.endswith("A") + second.endswith("B") + third.endswith("A") >= 2

    sampler, script = judged(seed, 4, reply)
    survivors = sampler.texts(n)
    while len(survivors) > 1:
        matches = list(zip(survivors[::2], survivors[1::2], strict=False))
        bye = survivors[2 * len(matches) :]
        survivors = bye + [s if s == t or beats(s, t) else t for s, t in matches]
    result = run_scripted(
        scripted_decoder(script), knockout, QUESTION, n=n, num_comparisons=3, compare_prompt=COMPARE
    )
    assert result.answer == survivors[0]
    assert result.best.score == max(c.score for c in result.candidates) > 0


@pytest.mark.parametrize("seed", range(4))
def test_multi_verifier_counts_approvals_of_all_models(seed):
    aspects, verify_prompt = ["logic", "units", "facts"], "{question}{answer} {aspect}?"

    def opinion(model):
        def logprobs_of(prefix, text):
            p = 0.02 + 0.96 * draw(seed, model, prefix)
            return [math.log(p if text == "Yes" else 1 - p)]

        return logprobs_of

    script = Sampler(seed)
    texts = script.texts(6)

    def rank(text):
        votes = sum(
            draw(seed, model, f"{QUESTION}{text} {aspect}?") * 0.96 + 0.02 > 0.5
            for model in ("one", "two")
            for aspect in aspects
        )
        return votes, script.likelihood(texts.index(text))

    judges = [scripted_decoder(script, logprobs_of=opinion(model)) for model in ("one", "two")]
    result = run_scripted(
        scripted_decoder(script),
        multi_verifier,
        QUESTION,
        n=6,
        aspects=aspects,
        verifier_decoders=judges,
        verify_prompt=verify_prompt,
    )
    assert result.answer == max(texts, key=rank)
    assert {c.text: c.score for c in result.candidates} == {text: rank(text)[0] / 6 for text in texts}


@pytest.mark.usefixtures("one_thread")
def test_multi_verifier_computes_an_answer_once_for_all_aspects(decoder):
    async def search():
        root = await decoder.root("What is 2 + 3?", SamplingParams(max_tokens=80, seed=4))
        before = decoder.stats().forward_tokens
        result = await multi_verifier(
            root, n=3, aspects=["one", "two", "six", "ten"], verify_prompt="{question}{answer}{aspect}"
        )
        fed = decoder.stats().forward_tokens - before
        root.release()
        return result, fed

    result, fed = decoder.run(search())
    asked = [node for node in result.tree[1:] if node.status == "prompt"]
    assert len(asked) == 12
    verified = fed - sum(len(c.tokens) - 1 for c in result.candidates)
    page = 16
    once = sum(len(node.tokens) for node in asked) / 4
    assert once < verified <= once + 3 * len(asked) * page  # the last page and the replies are each one's own


def plain_b4_choice(sampler, n, passed):
    texts = sampler.texts(n)
    scores = plain_b4([passed(text) for text in texts], 1e5, 1e3)
    first = {text: sampler.likelihood(k) for k, text in reversed(list(enumerate(texts)))}
    best = max(np.round(scores, 6))
    return {t for t, s in zip(texts, np.round(scores, 6), strict=True) if s == best}, first


@pytest.mark.parametrize("seed", range(5))
def test_b4_takes_the_likeliest_of_the_best_consensus(seed):
    def passes(text):
        return [draw(seed, answer_of(text), i) < 0.6 for i in range(8)]

    script = Sampler(seed)
    best, _ = plain_b4_choice(script, 10, passes)
    result = run_scripted(scripted_decoder(script), b4, QUESTION, n=10, run_tests=passes)
    assert result.answer in best
    likely = max((c for c in result.candidates if c.text in best), key=lambda c: c.logprob / len(c.tokens))
    assert result.best == likely


@pytest.mark.parametrize("seed", range(3))
def test_b4_without_tests_asks_the_model_for_checks(seed):
    def reply(prefix, k):
        return f"check {k % 3}"  # some come twice

    def p_yes(prefix):
        return 0.05 + 0.9 * draw(seed, prefix)

    def logprobs_of(prefix, text):
        return [math.log(p_yes(prefix) if text == "Yes" else 1 - p_yes(prefix))]

    sampler, script = judged(seed, 4, reply)
    best, _ = plain_b4_choice(
        sampler, 8, lambda text: [p_yes(f"{QUESTION}{text} check {i}") > 0.5 for i in range(3)]
    )
    result = run_scripted(
        scripted_decoder(script, logprobs_of=logprobs_of),
        b4,
        QUESTION,
        n=8,
        num_tests=5,
        write_prompt="{question}write",
        check_prompt="{question}{answer} {check}",
    )
    assert result.answer in best


def test_b4_wants_the_same_tests_each_time():
    with pytest.raises(ValueError, match=r"run_tests: got \[\d+, .*\] results"):
        run_scripted(
            scripted_decoder(Sampler(0)), b4, QUESTION, n=6, run_tests=lambda text: [True] * len(text)
        )


@pytest.mark.parametrize("strategy", [sample_scrutinize, knockout, multi_verifier, b4])
def test_answers_that_are_all_the_same_need_no_judge(strategy):
    decoder = scripted_decoder(lambda prefix, k: ("the same", "eos"))
    result = run_scripted(decoder, strategy, QUESTION, n=5)
    assert result.answer == "the same"
    assert len(decoder.complete.calls) == 5


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (adaptive_consistency, {"parallel": 0}, "parallel: got 0, expected >= 1"),
        (
            adaptive_consistency,
            {"threshold": 1.0},
            "threshold: got 1.0, expected a finite number, 0 < threshold < 1",
        ),
        (adaptive_consistency, {"criterion": "gamma"}, "criterion: got 'gamma'"),
        (self_calibration, {"threshold": 0.0}, "threshold: got 0.0"),
        (self_calibration, {"decide_by": "sum"}, "decide_by: got 'sum'"),
        (model_switch, {"threshold": 1.5}, "threshold: got 1.5"),
        (no_thinking, {"decide_by": "vote"}, "decide_by: got 'vote'"),
        (no_thinking, {"power": math.nan}, "power: got nan"),
        (st_bon, {"tau_coeff": -1.0}, "tau_coeff: got -1.0"),
        (st_bon, {"consistency": "layers"}, "consistency: got 'layers'"),
        (sample_scrutinize, {"margin": 2.0}, "margin: got 2.0"),
        (sample_scrutinize, {"num_verifications": 0}, "num_verifications: got 0"),
        (multi_verifier, {"aspects": []}, "aspects: got nothing"),
        (knockout, {"num_comparisons": 0}, "num_comparisons: got 0"),
        (b4, {"alpha_xy": 0.0}, "alpha_xy: got 0.0"),
    ],
)
def test_bad_options_are_named(strategy, options, message):
    with pytest.raises(ValueError, match=message):
        run_scripted(scripted_decoder(Sampler(0)), strategy, QUESTION, **options)


def test_self_consistency_of_the_script():
    script = Sampler(7)
    result = run_scripted(scripted_decoder(script), self_consistency, QUESTION, n=11, extract=answer_of)
    assert result.votes == tally(map(answer_of, script.texts(11)))
