"""Shared by strategies that rewrite answers: sampling from a prompt, scoring, choosing.

Prompts grow with the answers that they hold. A prompt with more tokens than the model has positions raises
`PromptTooLongError`; strategies then end the line and choose among the answers so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...core.params import SamplingParams
from ...core.running import gather
from ...rewards.scorer import Scorer
from ..answers import finish
from ..result import Candidate
from ..run import SearchRun

if TYPE_CHECKING:
    from ...core.interfaces import Branch, Decoder


class Thread:
    """Consecutive prompts that mostly begin with the same text.

    Each is held until the next one exists, so that the next one finds the KV of the shared prefix. The
    question, if it comes first, is shared with the search's own root anyway. Scorers treat what follows as an
    answer to that question.
    """

    def __init__(self, run: SearchRun) -> None:
        self._run = run
        self._held: Branch | None = None

    async def replies(
        self,
        prompt: str,
        n: int = 1,
        *,
        sources: Sequence[int] = (),
        decoder: Decoder | None = None,
    ) -> list[str]:
        """Returns the texts of `n` replies, each sampled in one step; none becomes a candidate."""
        run = self._run
        start = await self._next(prompt, sources, decoder, run.whole_reply())
        branches = run.fork(start, n)
        await gather(run.complete(branch) for branch in branches)
        for branch in branches:
            if branch.finished:
                run.tree[run.node(branch)].status = "finished"
        texts = [branch.text for branch in branches]
        run.prune(branches)
        return texts

    async def answers(
        self,
        prompt: str,
        n: int = 1,
        scorer: Scorer | None = None,
        *,
        sources: Sequence[int] = (),
        decoder: Decoder | None = None,
    ) -> list[Candidate]:
        """Returns `n` answers in order, candidates like the first ones."""
        branches = await self.branches(prompt, n, sources=sources, decoder=decoder)
        return await gather(finish(self._run, branch, scorer) for branch in branches)

    async def branches(
        self,
        prompt: str,
        n: int = 1,
        *,
        sources: Sequence[int] = (),
        decoder: Decoder | None = None,
    ) -> list[Branch]:
        """Returns `n` forks at the end of the prompt, for answers that need more than sampling."""
        return self._run.fork(await self._next(prompt, sources, decoder), n)

    def close(self) -> None:
        if self._held is not None:
            self._run.prune([self._held])
            self._held = None

    async def _next(
        self,
        prompt: str,
        sources: Sequence[int],
        decoder: Decoder | None,
        sampling: SamplingParams | None = None,
    ) -> Branch:
        branch = await self._run.prompt(
            prompt, sources=sources, decoder=decoder, sampling=sampling, question=self._run.question
        )
        self.close()
        self._held = branch
        return branch


async def answers_to(
    run: SearchRun, prompt: str, n: int = 1, scorer: Scorer | None = None, *, sources: Sequence[int] = ()
) -> list[Candidate]:
    """Returns `n` answers to a prompt that no other one follows."""
    thread = Thread(run)
    answers = await thread.answers(prompt, n, scorer, sources=sources)
    thread.close()
    return answers
