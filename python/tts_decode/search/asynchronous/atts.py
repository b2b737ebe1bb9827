"""ATTS: a draft model reasons in parallel, a target model judges each step as it comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ...errors import UnsupportedByEngineError
from ...select import extract_answer, rejects
from ..answers import Extract, decide, eligible, root_on, score_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch, Decoder


@strategy("a draft model samples side by side, a target model replaces steps that fail a conformal test")
async def atts(
    run: SearchRun,
    *,
    n: int = 16,
    target_decoder: Decoder | None = None,
    alpha: float = 0.4,
    calibration: Sequence[float] = (),
    max_steps: int = 40,
    extract: Extract = extract_answer,
) -> SearchResult:
    """`n` answers, each on its own: the draft model takes a step and the target reads it; if its perplexity
    is among the largest, the target takes the step instead.

    Xiong et al., "ATTS: Asynchronous Test-Time Scaling via Conformal Prediction", arXiv 2509.15148, and its
    code. A turn has three stages. The draft model (the root's) samples a step. The target's perplexity of the
    step is ranked among the calibration perplexities, which gives a conformal p-value. If p <= alpha, the
    step is rejected and the target samples another. Under exchangeability the target replaces at most a share
    `alpha` of the steps. No answer waits for another, since steps are not ranked within a turn.

    n               answers.
    target_decoder  the target model; None: the draft model itself.
    alpha           rejection rate; the code rejects from the 60th percentile on, as 0.4 does.
    calibration     perplexities known from earlier questions; those of this search join them (online
                    calibration). Nothing is rejected while there are fewer than 1 / alpha - 1.
    max_steps       steps of an answer, after which it ends as it stands.
    extract         the answer in a text, or None to abstain.

    The most frequent answer wins; `best` is its likeliest text for the target, and `score` the target's mean
    log-probability of a text's tokens. The target follows each answer on a branch of its own, so it reads
    every step once; both models roll back a rejected step. The root's sampling sets the length of steps (200
    to 500 tokens in the code). Departures: a rejected step is removed, where the code leaves it in the text
    before the target's own; steps with no text are accepted unread.
    """
    at_least(1, n=n, max_steps=max_steps)
    number("alpha", alpha, low=0, below=1)
    seen = list(calibration)

    async def answer(draft: Branch, judge: Branch) -> Candidate:
        for _ in range(max_steps):
            before, read = draft.length, judge.length
            (step,) = await run.step([draft])
            if step.text:
                logprobs = await run.extend(judge, step.text)
                if any(map(math.isnan, logprobs)):
                    raise UnsupportedByEngineError(
                        "atts ranks steps by their log-probabilities, which the target engine hides; make it "
                        "with a function that scores texts (TextDecoder's score=), or take another target"
                    )
                perplexity = math.exp(min(-math.fsum(logprobs) / len(logprobs), 700.0))
                rejected = rejects(perplexity, seen, alpha)
                seen.append(perplexity)
                if rejected and not run.over:
                    run.truncate(draft, before)
                    run.truncate(judge, read)
                    (better,) = await run.step([judge])
                    if better.text:
                        await run.extend(draft, better.text)
                    if judge.finished:
                        draft.finish(better.reason)
            if draft.finished:
                break
        run.prune([judge])
        return run.end(draft, math.fsum(judge.logprobs) / max(len(judge.logprobs), 1))

    drafts = run.fork(run.root, n)
    judged = run.root if target_decoder is None else await root_on(run, target_decoder)
    judges = run.fork(judged, n)
    if judged is not run.root:
        run.prune([judged])
    answers = await gather(answer(draft, judge) for draft, judge in zip(drafts, judges, strict=True))
    return decide(run, eligible(answers), extract, rank=score_of)
