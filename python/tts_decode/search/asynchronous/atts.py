"""ATTS: a draft model reasons in parallel; a target model judges each step as it arrives."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from tts_kernels.checks import number

from ...core.checks import at_least, check_choice
from ...core.running import gather
from ...errors import UnsupportedByEngineError
from ...select import extract_answer, percentile_rank, rejects
from ..answers import Extract, decide, eligible, root_on, score_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch, Decoder

_STATED = re.compile(r"\\boxed\{.*?\}|ANSWER:\s+[A-Z]", re.IGNORECASE)


@strategy("a draft model samples side by side, a target model replaces steps that it finds unlikely")
async def atts(
    run: SearchRun,
    *,
    n: int = 16,
    target_decoder: Decoder | None = None,
    alpha: float = 0.4,
    rule: Literal["percentile", "p_value"] = "percentile",
    calibration: Sequence[float] = (),
    num_calibration: int = 16,
    keep_rejected: bool = False,
    early_stop: bool = True,
    max_steps: int = 40,
    extract: Extract = extract_answer,
) -> SearchResult:
    """Writes `n` answers with a draft model; the target replaces steps that it finds too perplexing.

    Xiong et al., "ATTS: Asynchronous Test-Time Scaling via Conformal Prediction", arXiv 2509.15148, and its
    code (menik1126/Asynchronous-Test-Time-Scaling, the variant per question). A turn has three stages. The
    draft model (the root's) samples a step. The target's perplexity of the step is ranked among calibration
    perplexities. If it ranks too high, the step is rejected and the target samples another. No answer waits
    for another, since steps are not ranked within a turn.

    Args:
        n: answers.
        target_decoder: the target model; None: the draft model itself.
        alpha: rejection rate, 0.4 in the code.
        rule: "percentile", as the code has it: a step is rejected if at least a share 1 - alpha of the
            calibration perplexities, which stay as they are, is below its own. "p_value", as the paper has
            it: if the conformal p-value is at most alpha; the steps of this search join the calibration
            (online calibration), and under exchangeability the target replaces at most a share `alpha` of
            them.
        calibration: known perplexities of draft steps, for this question or similar ones.
        num_calibration: without `calibration`, how many first steps are drawn for this question, read, and
            dropped; 0: none, so "percentile" rejects nothing, and "p_value" only after 1 / alpha - 1 steps.
        keep_rejected: a rejected step stays in the text before the target's, as in the code; otherwise it is
            removed.
        early_stop: an answer ends with the step that states it: a closed \\boxed{}, or "ANSWER: X".
        max_steps: maximum number of steps of an answer, which then ends as it is.
        extract: the answer in a text, or None to abstain.

    The most frequent answer wins; `best` is its likeliest text by the target, and `score` the target's mean
    log-probability per token. The target follows each answer on its own branch, so it reads every step once;
    both models roll back a rejected step. The root's sampling sets the length of steps (200 to 500 tokens in
    the code, 100 of those for calibration) and their temperature.

    Departures. A rejected step is removed by default, where the code leaves it in. The code counts a question
    as solved if any answer is right; here a vote decides. Steps with no text are accepted unread.
    """
    at_least(1, n=n, max_steps=max_steps)
    at_least(0, num_calibration=num_calibration)
    number("alpha", alpha, low=0, below=1)
    check_choice("rule", rule, ("percentile", "p_value"))
    judged = run.root if target_decoder is None else await root_on(run, target_decoder)
    seen = list(calibration) or await _first_steps(run, judged, num_calibration)

    def refused(perplexity: float) -> bool:
        if rule == "percentile":
            return bool(seen) and percentile_rank(perplexity, seen) >= 1 - alpha - 1e-12  # 1 - 0.4 is rounded
        rejected = rejects(perplexity, seen, alpha)
        seen.append(perplexity)
        return rejected

    async def answer(draft: Branch, judge: Branch) -> Candidate:
        for _ in range(max_steps):
            before, read = draft.length, judge.length
            (step,) = await run.step([draft])
            if step.text and refused(await _perplexity(run, judge, step.text)) and not run.over:
                if keep_rejected and step.reason == "eos":
                    run.truncate(draft, draft.length - 1)  # keeps its text, not the end of the sequence
                elif not keep_rejected:
                    run.truncate(draft, before)
                    run.truncate(judge, read)
                (better,) = await run.step([judge])
                if better.text:
                    await run.extend(draft, better.text)
                if judge.finished:
                    draft.finish(better.reason)
            if early_stop and not draft.finished and _STATED.search(draft.text):
                draft.finish()
            if draft.finished:
                break
        run.prune([judge])
        return run.end(draft, math.fsum(judge.logprobs) / max(len(judge.logprobs), 1))

    drafts, judges = run.fork(run.root, n), run.fork(judged, n)
    if judged is not run.root:
        run.prune([judged])
    answers = await gather(answer(draft, judge) for draft, judge in zip(drafts, judges, strict=True))
    return await decide(run, eligible(answers), extract, rank=score_of)


async def _first_steps(run: SearchRun, judged: Branch, count: int) -> list[float]:
    """Returns the target's perplexities of first steps of the draft model, which are dropped again."""
    if not count:
        return []

    async def perplexity(draft: Branch, judge: Branch) -> list[float]:
        (step,) = await run.step([draft])
        return [await _perplexity(run, judge, step.text)] if step.text else []

    drafts, judges = run.fork(run.root, count), run.fork(judged, count)
    found = await gather(perplexity(draft, judge) for draft, judge in zip(drafts, judges, strict=True))
    run.prune([*drafts, *judges])
    return [value for values in found for value in values]


async def _perplexity(run: SearchRun, judge: Branch, text: str) -> float:
    """Returns the target's perplexity of a step, after having it read the step."""
    logprobs = await run.extend(judge, text)
    if any(map(math.isnan, logprobs)):
        raise UnsupportedByEngineError(
            "atts ranks steps by their log-probabilities, which the target engine hides; make it with a "
            "function that scores texts (TextDecoder's score=), or take another target"
        )
    return math.exp(min(-math.fsum(logprobs) / len(logprobs), 700.0))
