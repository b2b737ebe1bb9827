"""Iterative deepening sampling: triggers self-correction at budgets that grow geometrically."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tts_kernels.checks import number

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer
from ..answers import Extract, concluded, finish
from ..decisions import DecideBy
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .forcing import force, sample_upto, take_back

if TYPE_CHECKING:
    from ...core.interfaces import Branch

TRIGGER = "\n\nWait, there may be a mistake in this. Let me go through it again.\n\n"


@strategy("self-correction triggered at geometrically growing budgets")
async def iterative_deepening(
    run: SearchRun,
    *,
    n: int = 1,
    scorer: Scorer | None = None,
    max_tokens_first: int = 128,
    gamma: float = 2.0,
    rethink: str = TRIGGER,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Forces a sentence that asks for self-correction at token budgets that grow by `gamma`.

    Chen, Koenig and Dilkina, "Iterative Deepening Sampling as Efficient Test-Time Scaling", arXiv 2502.05449.
    The line samples up to a budget of tokens, gets the sentence, and continues up to the next budget, until
    the root's `max_tokens`.

    Args:
        n: concurrent lines (the paper's best-of-N and majority vote).
        max_tokens_first: tokens after the prompt, triggers included, at the first trigger.
        gamma: growth of the budget from one trigger to the next, above 1: the number of triggers grows with
            the logarithm of the length.
        rethink: the sentence, the paper's trigger.
        scorer, extract: which answer wins: the best-scored one, or without a scorer a vote over what
            `extract` reads from each. The answer of each stage counts: a line that ends within a budget
            becomes a candidate and continues from before its end. Ties go to the last answer.
        decide_by: as in `best_of_n`, where there is a scorer.

    The paper names KV reuse as the practical cost of its method; here the trigger is appended to the resident
    KV.

    Departures: a stage that ends early continues at once instead of filling its budget; the first budget, the
    default of `gamma` and the wording are ours.
    """
    at_least(1, n=n, max_tokens_first=max_tokens_first)
    run.refuse_constraint("iterative_deepening", "forces its rethink into answers")
    number("gamma", gamma, above=1)
    run.decide_by(decide_by, extract)
    last = run.root.sampling.max_tokens

    async def line(branch: Branch) -> list[Candidate]:
        answers: list[Candidate] = []
        budget = float(max_tokens_first)
        while True:
            cap = min(math.ceil(budget), last)
            reason = await sample_upto(run, branch, cap)
            if reason not in ("eos", "max_tokens") or cap == last:
                break
            if reason == "eos":
                answers.append(await finish(run, run.fork(branch)[0], scorer))
                take_back(run, branch)
            if not await force(run, branch, rethink):
                break
            while budget <= max(cap, branch.length - branch.prompt_length):
                budget *= gamma
        return [*answers, await finish(run, branch, scorer)]

    lines = await gather(line(branch) for branch in run.fork(run.root, n))
    return await concluded(run, scorer, extract, [answer for answers in lines for answer in answers][::-1])
