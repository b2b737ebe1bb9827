"""Selective answering: thinks up to a budget, then answers, or abstains if the model is not sure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ...errors import UnsupportedByEngineError
from ...select import extract_answer
from ..answers import Extract, elected, score_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .forcing import complete_answer, force, sample_upto, take_back

if TYPE_CHECKING:
    from ...core.interfaces import Branch


@strategy("thinking to a budget, then an answer only if the model is confident of it")
async def selective_answer(
    run: SearchRun,
    *,
    n: int = 1,
    threshold: float = 0.5,
    abstention: str = "I do not know.",
    max_tokens_thinking: int = 4000,
    rethink: str = "Wait",
    end_of_thinking: str = "</think>",
    final_answer: str = "\n\nFinal answer:",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Thinks for exactly the budget, forces the answer, and gives it if its probability is high enough.

    Jurayj, Cheng and Van Durme, "Is That Your Final Answer? Test-Time Scaling Improves Selective Question
    Answering", arXiv 2502.13962, section 2 (its code: wjurayj/final_answer), on the budget forcing of s1.

    Args:
        n: concurrent lines of thought; their answers vote by confidence.
        threshold: probability from which the answer is given; 0 gives every answer.
        abstention: the answer below the threshold: `best` is a candidate of this text alone.
        max_tokens_thinking: the budget: tokens of the thinking, including forced ones, or the root's
            `max_tokens` if that is less. The answer after it may have the root's `max_tokens` again.
        rethink: what replaces an end of the thinking before the budget; "": the line ends early.
        end_of_thinking: text that ends the thinking, as the end of the sequence also does; "" for a model
            without such text.
        final_answer: forced after the thinking, and after `end_of_thinking`.
        extract: the answer in a line's text, or None to abstain.

    A candidate's score is its confidence: the product of the probabilities of the tokens after
    `final_answer`, without the end of the sequence. The winner is as confident as its best line.
    `select.selective_utility` computes what a threshold earns on graded answers.

    Departures: several lines; the paper sets the threshold on the sum of log-probabilities, which is the
    logarithm of the same number.
    """
    at_least(1, n=n, max_tokens_thinking=max_tokens_thinking)
    run.refuse_constraint("selective_answer", "forces its rethink and final_answer into answers")
    number("threshold", threshold, low=0, high=1)
    cap = min(max_tokens_thinking, run.root.sampling.max_tokens)
    stop = (end_of_thinking,) if end_of_thinking else ()

    async def line(branch: Branch) -> Candidate:
        while (reason := await sample_upto(run, branch, cap, stop)) in ("stop_string", "eos"):
            take_back(run, branch, end_of_thinking)
            if not rethink or branch.length - branch.prompt_length >= cap:
                break
            if not await force(run, branch, rethink):
                return run.end(branch)
        if reason not in ("stop_string", "eos", "max_tokens"):
            return run.end(branch)
        if not await force(run, branch, end_of_thinking + final_answer):
            return run.end(branch)
        begin = branch.length
        await complete_answer(run, branch)
        return run.end(branch, _confidence(branch, begin))

    lines = await gather(line(branch) for branch in run.fork(run.root, n))
    answered = [c for c in lines if c.complete and c.score is not None]
    if not answered:  # cut before an answer
        return await run.result()
    best, votes = await elected(answered, extract, [score_of(c) for c in answered], rank=score_of)
    if score_of(best) < threshold:
        (branch,) = run.fork(run.root)
        await run.extend(branch, abstention)
        branch.finish()
        best = run.end(branch)
    return await run.result(best, votes)


def _confidence(branch: Branch, begin: int) -> float:
    """Returns the probability of what follows position `begin`, without a closing end token."""
    ended = branch.finish_reason == "eos"
    logprob = math.fsum(branch.logprobs[begin - branch.prompt_length : len(branch.logprobs) - ended])
    if math.isnan(logprob):
        raise UnsupportedByEngineError(
            "selective_answer weighs answers by their log-probabilities, which the engine hides; use a "
            "TreeDecoder, or an engine that tells them"
        )
    return math.exp(min(logprob, 0.0))
