"""First finish and ST-BoN: samples cut off early, the one that continues, and the KV that they hold."""

import asyncio
import random
from collections import Counter

import numpy as np
import pytest
from answer_sampler import QUESTION, Sampler
from plain_scripts import draw
from scripted import run_scripted, scripted_decoder, words
from tiny_models import EOS, byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.rewards import verifier
from tts_decode.search import best_of_n, first_finish, st_bon


@pytest.fixture(scope="module")
def decoder():
    return TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20)


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
