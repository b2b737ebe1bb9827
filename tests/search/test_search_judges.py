"""Strategies in which a model judges whole answers, each against a plain transcription of its algorithm."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from answer_sampler import QUESTION, Sampler, judged, sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_scripts import answer_of, draw, number
from plain_selection import plain_b4
from scripted import run_scripted, scripted_decoder
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.search import b4, knockout, multi_verifier, sample_scrutinize
from tts_decode.select import choose_verifiers


@pytest.fixture(scope="module")
def decoder():
    return TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20)


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
    result = sampled(
        script,
        sample_scrutinize,
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
    result = sampled(script, knockout, n=n, num_comparisons=3, compare_prompt=COMPARE)
    assert result.answer == survivors[0]
    assert result.best.score == max(c.score for c in result.candidates) > 0


def spread(text):
    """Sometimes no verdict, else one of two, with more behind it."""
    return ("I cannot say.", "Yes.", "No", "Not Yes but No", "no: Yes")[number(text) % 5]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chosen", [None, [5, 0, 1]])
def test_multi_verifier_counts_the_verdicts_that_all_models_write(seed, chosen):
    """Of each (model, aspect): an analysis, then a verdict in view of it; most approvals, of equals the
    first. Verdicts are read by hand."""
    aspects, said = ["logic", "units", "facts"], {}

    def judge(model):
        def reply(prefix, k):
            said[model, prefix] = k
            if prefix.endswith("? clear"):
                return spread(f"{seed} {model} {prefix}"), "eos"
            return f"thoughts {number(seed, model, prefix) % 50}", "eos"

        return reply

    script = Sampler(seed)
    texts = script.texts(6)

    def approves(model, aspect, text):
        verify = f"{QUESTION}{text} {aspect}"
        analysis = f"thoughts {number(seed, model, verify) % 50}"
        reply = spread(f"{seed} {model} {verify}\n\n{analysis}\n\n{aspect}? clear")
        return reply in ("Yes.", "no: Yes")

    verifiers = [(model, aspect) for model in ("one", "two") for aspect in aspects]
    verifiers = verifiers if chosen is None else [verifiers[i] for i in chosen]
    votes = {text: sum(approves(*verifier, text) for verifier in verifiers) for text in texts}
    options = {
        "aspects": aspects,
        "chosen": chosen,
        "verifier_decoders": [scripted_decoder(judge(model)) for model in ("one", "two")],
        "verify_prompt": "{question}{answer} {aspect}",
        "clarify_prompt": "{aspect}? clear",
    }
    result = sampled(script, multi_verifier, n=6, **options)
    assert result.answer == max(texts, key=votes.get)
    assert {c.text: c.score for c in result.candidates} == {t: v / len(verifiers) for t, v in votes.items()}
    assert len(said) == 2 * len(verifiers) * len(votes)
    calls = [call for decoder in options["verifier_decoders"] for call in decoder.complete.calls]
    assert {call.request.temperature for call in calls} == {0.0}


@pytest.mark.parametrize("seed", range(2))
def test_multi_verifier_may_do_without_the_analysis(seed):
    def logprobs_of(prefix, text):
        p = 0.02 + 0.96 * draw(seed, prefix)
        return [math.log(p if text == "Yes" else 1 - p)]

    script = Sampler(seed)
    texts = script.texts(6)

    def votes(text):
        return sum(
            0.02 + 0.96 * draw(seed, f"{QUESTION}{text} {a}\n\n{a}?") > 0.5 for a in ("logic", "facts")
        )

    decoder = scripted_decoder(script, logprobs_of=logprobs_of)
    options = {"aspects": ["logic", "facts"], "verdict": "p_yes", "clarify_prompt": "{aspect}?"}
    options["verify_prompt"] = "{question}{answer} {aspect}"
    result = run_scripted(decoder, multi_verifier, QUESTION, n=6, **options)
    assert result.answer == max(texts, key=votes)
    assert len(decoder.complete.calls) == 6


def test_multi_verifier_asks_for_the_verdict_in_a_turn_of_its_own():
    shown = []

    def render(messages):
        shown.append(messages)
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    def script(prefix, k):
        return (f"answer {k}" if prefix == "<user>Why?" else "No flaw, so Yes"), "eos"

    decoder = scripted_decoder(script, render=render)
    chat = [{"role": "user", "content": "Why?"}]
    result = run_scripted(decoder, multi_verifier, chat, n=2, aspects=["Right?"])
    assert [message["role"] for message in shown[-1]] == ["user", "assistant", "user"]
    assert shown[-1][1]["content"] == "No flaw, so Yes"
    assert [candidate.score for candidate in result.candidates] == [1.0, 1.0]
    assert result.answer == "answer 0"


@given(st.data())
@settings(max_examples=60)
def test_verifiers_are_chosen_by_what_they_choose(data):
    """No single one does better, nor any that is added next; with all as a bound, by brute force."""
    problems, candidates, verifiers = (data.draw(st.integers(1, 4)) for _ in range(3))
    bools = st.lists(st.booleans(), min_size=verifiers, max_size=verifiers)
    answers = st.lists(bools, min_size=candidates, max_size=candidates)
    approvals = data.draw(st.lists(answers, min_size=problems, max_size=problems))
    good = st.lists(st.booleans(), min_size=candidates, max_size=candidates)
    right = data.draw(st.lists(good, min_size=problems, max_size=problems))

    def solved(some):
        total = 0
        for rows, known in zip(approvals, right, strict=True):
            votes = [sum(row[i] for i in some) for row in rows]
            total += known[max(range(candidates), key=lambda c: (votes[c], -c))]
        return total

    expected, best = [], (-1, [])
    while len(expected) < verifiers:
        left = [i for i in range(verifiers) if i not in expected]
        expected = [*expected, max(left, key=lambda i: (solved([*expected, i]), -i))]
        best = max(best, (solved(expected), expected), key=lambda entry: entry[0])
    assert choose_verifiers(approvals, right) == best[1]
    assert solved(best[1]) >= max(solved([i]) for i in range(verifiers))
    assert len(choose_verifiers(approvals, right, 1)) == 1


def test_verifiers_of_other_problems_are_refused():
    with pytest.raises(
        ValueError, match=r"approvals: got \[2\] candidates of \[1\] verifiers for \[3\] in right"
    ):
        choose_verifiers([[[True], [False]]], [[True, False, True]])


@pytest.mark.usefixtures("one_thread")
def test_multi_verifier_computes_an_answer_once_for_all_aspects(decoder):
    async def search():
        root = await decoder.root("What is 2 + 3?", SamplingParams(max_tokens=80, seed=4))
        before = decoder.stats().forward_tokens
        result = await multi_verifier(
            root,
            n=3,
            aspects=["one", "two", "six", "ten"],
            verdict="p_yes",
            verify_prompt="{question}{answer}{aspect}",
            clarify_prompt="?",
        )
        fed = decoder.stats().forward_tokens - before
        root.release()
        return result, fed

    result, fed = decoder.run(search())
    asked = [node for node in result.tree[1:] if node.status == "prompt"]
    assert len(asked) == 12  # no analyses, whose KV is each one's own
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
    result = sampled(script, b4, n=10, run_tests=passes)
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
        sampled(Sampler(0), b4, n=6, run_tests=lambda text: [True] * len(text))


@pytest.mark.parametrize("strategy", [sample_scrutinize, knockout, multi_verifier, b4])
def test_answers_that_are_all_the_same_need_no_judge(strategy):
    decoder = scripted_decoder(lambda prefix, k: ("the same", "eos"))
    result = run_scripted(decoder, strategy, QUESTION, n=5)
    assert result.answer == "the same"
    assert len(decoder.complete.calls) == 5
