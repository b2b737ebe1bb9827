"""Hint-infer: hints inserted where the model hesitates or would end, with a tool's output if there is one."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.checks import at_least
from ...core.running import gather
from ...rewards.scorer import Scorer
from ...select import extract_answer, fork_points
from ..answers import Extract, concluded, finish
from ..decisions import DecideBy
from ..outside import Tool, output_of
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy
from .forcing import force, sample_upto, take_back

if TYPE_CHECKING:
    from ...core.interfaces import Branch

CONJUNCTIONS = ("wait", "alternatively", "however", "but", "hmm")
HINTS = (
    "\n\nWait, let me check this once more in another way.",
    "\n\nAlternatively, I can take the steps one by one and test each.",
)
TOOL_HINTS = ("\n\nWait, some Python could settle this.\n```python\n",)
CODE_END = "```"
OUTPUT = "\n```output\n{}\n```\n"


@strategy("hints forced before the end and at uncertain conjunctions, a tool's output after them")
async def hint_infer(
    run: SearchRun,
    *,
    n: int = 1,
    scorer: Scorer | None = None,
    num_hints: int = 1,
    num_forks: int = 0,
    hints: Sequence[str] | None = None,
    tool: Tool | None = None,
    conjunctions: Sequence[str] = CONJUNCTIONS,
    decide_by: DecideBy = "max",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Replaces the end of a line with a hint and continues; forks get a hint where the line hesitated.

    Li et al., "START: Self-taught Reasoner with Tools", arXiv 2503.04625, Hint-infer (the part without
    training).

    Args:
        n: concurrent lines.
        num_hints: consecutive hints in a line, each at its end (the paper's sequential scaling).
        num_forks: forks of each line's first answer (the paper's parallel scaling). Each replaces one of the
            `conjunctions` of highest entropy with a hint.
        hints: texts, used in rotation. Default: two that ask to check and to try another way; with a tool,
            one that opens a block of Python.
        tool: gets the text between a hint and the next ``` and returns the output, which is forced after it;
            an exception's text is output too. An async function is awaited; another one runs in a thread.
        conjunctions: words at which a fork may begin.
        scorer, extract: which answer wins: the best-scored one, earlier answers included, or without a scorer
            a vote over what `extract` reads from the last answer of each line and fork.
        decide_by: as in `best_of_n`, where there is a scorer.

    The root's `max_tokens` limits a line with all its hints; a line cut by it gets no hint.

    Departures: only the code that answers a hint is run, not later code blocks of the model's own; a hint
    replaces the conjunction instead of following it; the wording.
    """
    at_least(1, n=n)
    run.refuse_constraint("hint_infer", "forces its hints into answers")
    at_least(0, num_hints=num_hints, num_forks=num_forks)
    run.decide_by(decide_by, extract)
    hints = hints or (HINTS if tool is None else TOOL_HINTS)

    async def go_on(branch: Branch, hint: str) -> None:
        if not await force(run, branch, hint):
            return
        if tool is not None:
            begin = branch.length
            reason = await sample_upto(run, branch, run.root.sampling.max_tokens, (CODE_END,))
            if reason == "stop_string":
                code = branch.text_from(begin)
                output = await output_of(run, tool, code[: code.rfind(CODE_END)])
                if not await force(run, branch, OUTPUT.format(output)):
                    return
        await run.complete(branch)

    async def fork_hint(branch: Branch, hint: str) -> Candidate:
        await go_on(branch, hint)
        return await finish(run, branch, scorer)

    async def end_hints(branch: Branch) -> Candidate:
        for i in range(num_hints):
            if branch.finish_reason != "eos":
                break
            await finish(run, run.fork(branch)[0], scorer)
            take_back(run, branch)
            await go_on(branch, hints[i % len(hints)])
        return await finish(run, branch, scorer)

    async def line(branch: Branch) -> list[Candidate]:
        await run.complete(branch)
        forks: list[Branch] = []
        if num_forks and not run.over:
            places = conjunction_positions(branch, run.root.length, conjunctions)
            entropies = [branch.entropies[at - branch.prompt_length] for at in places]
            forks = [run.fork(branch, at=places[i])[0] for i in fork_points(entropies, num_forks)]
        return await gather(
            end_hints(branch), *(fork_hint(fork, hints[i % len(hints)]) for i, fork in enumerate(forks))
        )

    lines = await gather(line(branch) for branch in run.fork(run.root, n))
    return await concluded(run, scorer, extract, [answer for answers in lines for answer in answers])


def conjunction_positions(branch: Branch, begin: int, conjunctions: Sequence[str]) -> list[int]:
    """Returns positions in `branch.tokens`, from `begin` on, of tokens in which one of these words begins."""
    text = branch.text_from(begin)
    words = "|".join(re.escape(word) for word in conjunctions)
    starts = [match.start() for match in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)]
    positions = range(begin, branch.length)

    def offset(position: int) -> int:
        return len(text) - len(branch.text_from(position))

    return list(dict.fromkeys(positions[bisect_right(positions, at, key=offset) - 1] for at in starts))
