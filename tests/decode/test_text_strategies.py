"""Strategies over a completion call: plain transcriptions of their algorithms, searches that are resumed."""

import math
from collections import Counter
from fractions import Fraction

import pytest
from scripted import counted, random_script, run_scripted, scorer, scripted_decoder
from text_cases import PROMPT, grade
from tts_decode import Budget, SamplingParams
from tts_decode.search import SearchRun, beam_search, best_of_n, rebase, self_consistency
from tts_decode.search.journal import Journal

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_samples(ask, n):
    """n answers, a step of each in turn."""
    texts, ended = [""] * n, [False] * n
    while not all(ended):
        for i in range(n):
            if not ended[i]:
                text, reason = ask(PROMPT + texts[i])
                texts[i] += text
                ended[i] = reason == "eos"
    return texts


def plain_beam(ask, n, width):
    live, done = [""] * n, []
    while live and len(done) < n:
        grown = []
        for text in live:
            step, reason = ask(PROMPT + text)
            (done if reason == "eos" else grown).append(text + step)
        order = sorted(range(len(grown)), key=lambda i: -grade(grown[i]))[: n // width]
        shares = {i: n // len(order) + (place < n % len(order)) for place, i in enumerate(order)}
        live = [text for i, text in enumerate(grown) for _ in range(shares.get(i, 0))]
    return done[:n]


def plain_rebase(ask, n, balance=0.2):
    live, done = [""] * n, []
    while live:
        grown = []
        for text in live:
            step, reason = ask(PROMPT + text)
            (done if reason == "eos" else grown).append(text + step)
        weights = [Fraction(math.exp(grade(text) / balance)) for text in grown]
        left, mass, counts = len(grown), sum(weights), [0] * len(grown)
        for i in sorted(range(len(grown)), key=lambda i: -weights[i]):  # a walk of ceilings
            counts[i] = math.ceil(left * weights[i] / mass) if left else 0
            left, mass = left - counts[i], mass - weights[i]
        live = [text for text, count in zip(grown, counts, strict=True) for _ in range(count)]
    return done


@pytest.mark.parametrize("seed", range(8))
def test_strategies_decide_as_their_plain_transcriptions(seed):
    script = random_script(seed)

    def run(strategy, **options):
        return run_scripted(scripted_decoder(script), strategy, PROMPT, n=6, **options)

    samples = plain_samples(counted(script), 6)
    result = run(best_of_n, scorer=scorer(grade))
    assert sorted(c.text for c in result.candidates) == sorted(samples)
    assert grade(result.answer) == max(map(grade, samples))
    votes = Counter(text[-1] for text in samples)
    assert run(self_consistency).votes == votes

    for result, expected in (
        (run(beam_search, beam_width=2, scorer=scorer(grade)), plain_beam(counted(script), 6, 2)),
        (run(rebase, scorer=scorer(grade)), plain_rebase(counted(script), 6)),
    ):
        assert [c.text for c in result.candidates if c.complete] == expected
        assert result.answer == max(expected, key=grade)


def test_a_search_is_resumed_from_its_journal_without_asking_again(tmp_path):
    """A resumed search counts requests anew, so that only the first step differs by that count here."""

    def script(prefix, k):
        return random_script(5)(prefix, k if prefix == PROMPT else 0)

    def run(decoder, **options):
        async def search():
            root = await decoder.root(PROMPT, budget=Budget(max_tokens=1000))
            run = SearchRun(root, journal=Journal(tmp_path / "journal", **options))
            result = await rebase(run, n=4, scorer=scorer(grade))
            root.release()
            return result, root.budget.tokens_used

        return decoder.run(search())

    first = scripted_decoder(script)
    (expected, used), calls = run(first), len(first.complete.calls)
    lines = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal").write_bytes(b"".join(lines[: len(lines) // 2]))

    second = scripted_decoder(script)
    asked = Counter(call.prefix for call in first.complete.calls)
    result, used_again = run(second, resume=True)
    assert 0 < len(second.complete.calls) < calls
    assert not Counter(call.prefix for call in second.complete.calls) - asked
    assert used_again == used
    assert result.answer == expected.answer
    assert result.candidates == expected.candidates


def test_seeds_are_the_same_in_the_same_search_and_change_with_the_roots():
    def seeds(seed):
        decoder = scripted_decoder(random_script(0))
        run_scripted(decoder, rebase, PROMPT, sampling=SamplingParams(seed=seed), n=4, scorer=scorer(grade))
        return [(call.prefix, call.request.seed) for call in decoder.complete.calls]

    assert seeds(1) == seeds(1)
    assert {seed for _, seed in seeds(1)}.isdisjoint(seed for _, seed in seeds(2))
