"""Sampling-based search: many samples, each verified many times; the best are compared."""

from __future__ import annotations

from itertools import combinations

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ...select import extract_answer, wins_of, within
from ..answers import Extract, choose, distinct, eligible, likeliest, likelihood, sample
from ..decisions import DecideBy
from ..result import SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .judging import COMPARE, approvals, preferences

VERIFY = """{question}

A proposed response:
{answer}

Check this response. Restate it as numbered claims, look for a mistake in each one, and say whether its \
final answer is right. End with one line, either "Verdict: correct" or "Verdict: wrong"."""


@strategy("many answers, verified by the model; the best ones compared")
async def sample_scrutinize(
    run: SearchRun,
    *,
    n: int = 16,
    num_verifications: int = 4,
    num_comparisons: int = 4,
    margin: float = 0.05,
    verify_prompt: str = VERIFY,
    compare_prompt: str = COMPARE,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Samples answers, has the model verify each one, and compares the best-verified ones in pairs.

    Zhao, Awasthi, Gollapudi, "Sample, Scrutinize and Scale: Effective Inference-Time Search by Scaling
    Verification", arXiv 2502.01839, algorithm 1. The paper's numbers are 200 samples, 50 verifications and
    100 comparisons.

    Args:
        n: number of samples.
        num_verifications: verdicts on each sample; a sample's score is the share that call it correct.
        num_comparisons: verdicts on each pair of samples whose score is within `margin` of the best.
        margin: distance from the best score, as a share of all verdicts.
        verify_prompt: with the fields {question} and {answer}; its last "correct" or "wrong" counts.
        compare_prompt: with the fields {question}, {first} and {second}; its last "A" or "B" counts.
        decide_by: "max": as described below; "last" is the same. "weighted" and "majority" as in `best_of_n`.
        extract: the answer in a text, or None to abstain.

    The sample that wins most pairs wins; ties go to the better score, then to the likelier sample.

    Departures. A text sampled twice is verified once. The paper rewrites each response as theorem, lemmas and
    proof in a separate call; here the verification does so before its verdict. Half of a pair's comparisons
    swap the two. A reply without a verdict counts against a response, and for neither of a pair.
    """
    at_least(1, n=n, num_verifications=num_verifications, num_comparisons=num_comparisons)
    run.decide_by(decide_by, extract)
    number("margin", margin, low=0, high=1)
    pool = distinct(eligible(await sample(run, n)))
    if len(pool) == 1 or run.over:
        return await run.result(likeliest(pool))
    replies = await gather(
        run.ask(
            verify_prompt.format(question=run.question, answer=c.text), num_verifications, sources=(c.node,)
        )
        for c in pool
    )
    scores = [approvals(texts, "correct", "wrong") / num_verifications for texts in replies]
    best = within(scores, margin)
    pairs = list(combinations(best, 2))
    matches = await gather(
        preferences(run, pool[i], pool[j], num_comparisons, compare_prompt) for i, j in pairs
    )
    wins = wins_of(len(pool), pairs, matches)
    winner = max(best, key=lambda i: (wins[i], scores[i], likelihood(pool[i])))
    chosen = pool[winner] if decide_by in ("max", "last") else None
    return await choose(run, chosen, {c.text: score for c, score in zip(pool, scores, strict=True)})
