"""Verdicts that a model writes about answers: prompts, and parsing of the replies."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.running import gather
from ...select import last_choice
from ..result import Candidate
from ..run import SearchRun

COMPARE = """{question}

Response A:
{first}

Response B:
{second}

At most one of the two responses is right. Find where they part, say which of them is mistaken there, and \
end with one line, either "Better: A" or "Better: B"."""


def approvals(replies: Sequence[str], yes: str, no: str) -> int:
    """Counts the replies that end in `yes` rather than in `no` or in neither."""
    return sum(last_choice(reply, (yes, no)) == yes for reply in replies)


async def preferences(
    run: SearchRun, one: Candidate, other: Candidate, count: int, prompt: str
) -> tuple[int, int]:
    """Counts how many of `count` comparisons of two answers prefer the one, and the other.

    Some prefer neither. Every second comparison swaps the two answers.
    """

    async def ask(first: Candidate, second: Candidate, times: int) -> list[str]:
        if not times:
            return []
        text = prompt.format(question=run.question, first=first.text, second=second.text)
        return await run.ask(text, times, sources=(first.node, second.node))

    straight, swapped = await gather(ask(one, other, count - count // 2), ask(other, one, count // 2))
    return (
        approvals(straight, "A", "B") + approvals(swapped, "B", "A"),
        approvals(straight, "B", "A") + approvals(swapped, "A", "B"),
    )
