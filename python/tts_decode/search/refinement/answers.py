"""What strategies that write answers again share: sampling from a prompt, scoring, choosing among them.

Prompts grow with the answers that they hold. Where one would have more tokens than the model has positions,
`PromptTooLong` is raised, at which strategies end the line and choose among the answers that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tts_decode import gather
from tts_decode.rewards.scorer import Scorer
from tts_decode.sampling import SamplingParams
from tts_decode.search.result import Candidate
from tts_decode.search.run import SearchRun
from tts_decode.search.sampling.samples import eligible, likeliest
from tts_decode.select import vote

if TYPE_CHECKING:
    from tts_decode.branch import Branch
    from tts_decode.decoder import TreeDecoder


async def finish(run: SearchRun, branch: Branch, scorer: Scorer | None = None) -> Candidate:
    """Samples the branch to its end; a candidate, scored if there is a scorer."""
    await run.complete(branch)
    if scorer is not None:
        await run.score([branch], scorer)
    return run.end(branch)


async def first_answers(run: SearchRun, n: int, scorer: Scorer | None = None) -> list[Candidate]:
    """`n` answers to the search's own prompt, in order."""
    return await gather(finish(run, branch, scorer) for branch in run.fork(run.root, n))


class Thread:
    """Prompts that come one after the other and mostly begin with the same text.

    Each stays held until the next one is there, which so finds the KV of all that they share; the question is
    shared with the search's own root anyway, where it comes first. Scorers take what follows for an answer to
    that question.
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
        decoder: TreeDecoder | None = None,
    ) -> list[str]:
        """Texts of `n` replies, none of which becomes a candidate; each is sampled in one step."""
        run = self._run
        whole = replace(run.root.sampling, stop=(), max_step_tokens=run.root.sampling.max_tokens)
        start = await self._next(prompt, sources, decoder, whole)
        branches = run.fork(start, n)
        await gather(run.complete(branch) for branch in branches)
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
        decoder: TreeDecoder | None = None,
    ) -> list[Candidate]:
        """`n` answers in order, candidates like the first ones."""
        branches = await self.branches(prompt, n, sources=sources, decoder=decoder)
        return await gather(finish(self._run, branch, scorer) for branch in branches)

    async def branches(
        self,
        prompt: str,
        n: int = 1,
        *,
        sources: Sequence[int] = (),
        decoder: TreeDecoder | None = None,
    ) -> list[Branch]:
        """`n` forks at the end of the prompt, for answers that are more than sampled."""
        return self._run.fork(await self._next(prompt, sources, decoder), n)

    def close(self) -> None:
        if self._held is not None:
            self._run.prune([self._held])
            self._held = None

    async def _next(
        self,
        prompt: str,
        sources: Sequence[int],
        decoder: TreeDecoder | None,
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
    """`n` answers to a prompt that no other one follows."""
    thread = Thread(run)
    answers = await thread.answers(prompt, n, scorer, sources=sources)
    thread.close()
    return answers


def nothing_to_refine(run: SearchRun) -> bool:
    """Whether no further answer can be made: the budget is used up, or the root is an answer already."""
    return run.over or run.root.finished


def preferred(
    candidates: Sequence[Candidate], scorer: Scorer | None, extract: Callable[[str], str | None]
) -> Candidate:
    """The best-scored one, or without a scorer the likeliest of those that gave the most frequent answer.
    Only those that came to their own end count, unless none did; ties go to the first."""
    pool = eligible(candidates)
    if scorer is not None:
        return max(pool, key=score_of)
    answers = [extract(candidate.text) for candidate in pool]
    winner = next(iter(vote(answers)), None)
    return likeliest([c for c, answer in zip(pool, answers, strict=True) if answer == winner])


def score_of(candidate: Candidate) -> float:
    """Its score; one that was not scored ranks below every other."""
    return float("-inf") if candidate.score is None else candidate.score


def after(text: str, end_of_thinking: str) -> str:
    """What an answer says once its thinking is over; all of it where no such end is found."""
    return text.rpartition(end_of_thinking)[2].strip() if end_of_thinking else text
