"""ReVISE: the probability that the model would accept its answer decides whether it thinks again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ...select import extract_answer
from ..answers import Extract, decide, eligible
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from ..thinking.forcing import complete_answer, fits, force

if TYPE_CHECKING:
    from ...core.interfaces import Branch

VERIFY = "\n\nIs this answer right? Reply with Yes or No.\nReply:"
RETHINK = "\n\nThis is not right yet. I will think it through again.\n"


@strategy("answers that the model would not accept are thought through again; accepted ones weigh more")
async def revise(
    run: SearchRun,
    *,
    n: int = 16,
    max_rounds: int = 1,
    threshold: float = 0.5,
    accept: str = " Yes",
    refine: str = " No",
    rethink: str = RETHINK,
    verify_prompt: str = VERIFY,
    extract: Extract = extract_answer,
) -> SearchResult:
    """Continues after each answer that the model would rather refine; lacks the trained model.

    Lee et al., "ReVISE: Learning to Refine at Test-Time via Intrinsic Self-Verification", arXiv 2502.14565.
    Its model is trained to end an answer with the end of the sequence or with a refinement token. For such a
    model `verify_prompt` is "", `accept` is the text of the first, `refine` and `rethink` are the text of the
    second. With the defaults any model works, as far as it is calibrated.

    Args:
        n: concurrent lines.
        max_rounds: how often a line may continue; the paper's model is trained for once.
        threshold: an answer with a smaller P(accept) is refined.
        accept, refine: two continuations: P(accept) is the probability of the first, divided by the sum of
            both.
        rethink: text that a line continues with; it stays, as does the answer before it.
        verify_prompt: text between an answer and `accept` or `refine`, without fields; it does not stay.
        extract: the last answer in a line's text, or None to abstain.

    Confidence-aware decoding: the last answer of each line votes with its P(accept), which is also the
    candidates' score. An answer's end token is rolled back before the line continues, and nothing is
    prefilled again. The continuation has its own `max_tokens`, the root's. Departures: `threshold`; the
    paper's model samples one of its two tokens; an answer cut by the token limit is not refined; an answer is
    not accepted if the model has no positions left for the question.
    """
    at_least(1, n=n)
    run.refuse_constraint("revise", "forces its rethink into answers")
    at_least(0, max_rounds=max_rounds)
    number("threshold", threshold, low=0, high=1)

    async def line(branch: Branch) -> Candidate:
        await run.complete(branch)
        answer: Candidate | None = None
        left = max_rounds
        while not run.over:
            ended = branch.finish_reason == "eos"
            (behind,) = run.fork(branch, at=branch.length - 1 if ended else None)
            p = await accepted(behind)
            answer = run.end(branch, p)
            if p >= threshold or not (ended and left) or not await force(run, behind, rethink):
                run.prune([behind])
                return answer
            branch, left = behind, left - 1
            await complete_answer(run, branch)
        latest = run.end(branch)
        return latest if latest.complete or answer is None else answer

    async def accepted(branch: Branch) -> float:
        if not fits(branch, verify_prompt + max(accept, refine, key=len)):
            return 0.0
        return await run.p_first(branch, verify_prompt + accept, verify_prompt + refine)

    last = await gather(line(branch) for branch in run.fork(run.root, n))
    voters = eligible(last)
    return await decide(run, voters, extract, [c.score or 0.0 for c in voters])
