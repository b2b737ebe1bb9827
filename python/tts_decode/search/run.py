"""What every search does alike: it holds branches, records its tree, keeps accounts, cleans up."""

from __future__ import annotations

import asyncio
import math
import random
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tts_kernels.checks import integer, number

from ..core.params import SamplingParams, mix
from ..core.prompts import is_chat
from ..core.running import gather
from ..errors import PromptTooLongError, ScorerError, TTSError
from ..rewards.scorer import Scorer, score_branches
from .blocking import wait_within
from .held_branches import HeldBranches
from .journal import Journal
from .result import Candidate, SearchResult, SearchStats, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.interfaces import Branch, Decoder
    from ..core.prompts import Prompt
    from ..core.step import Step


class SearchStoppedError(TTSError):
    """Ends a search with what it has; the message says why."""


class SearchRun(HeldBranches):
    """One search from one root: what a strategy works with.

    A branch is held from `fork` or `prompt` on, until it is pruned or ends as a candidate; both release it at
    once, so that its pages return. The root stays the caller's. Methods on branches are those of
    `HeldBranches`, and of this class where they wait for the model.

    Args:
        root: where the search begins.
        journal: keeps what engine and scorers return, so that the search can be resumed.
        scorer_timeout: seconds that a call of a scorer may take; None: what the budget leaves. A scorer that
            takes longer, or raises, ends the search with what it has. So does one that blocks its thread:
            where there is a limit, a scorer's code runs on a thread of its own while the event loop waits.

    Attributes:
        rng: for what the strategy itself draws; its seed is the root's.
        candidates: those that ended so far.
        stopped: why the search ended before its time.
    """

    def __init__(
        self, root: Branch, *, journal: Journal | None = None, scorer_timeout: float | None = None
    ) -> None:
        if scorer_timeout is not None:
            scorer_timeout = number("scorer_timeout", scorer_timeout, above=0, what="a number of seconds")
        if not callable(getattr(root, "fork", None)):
            raise TypeError(
                f"root: got {type(root).__name__}, expected a branch, as `await decoder.root(prompt)` makes"
            )
        super().__init__(root, journal)
        self.rng = random.Random(root.seed)
        self.stopped: str | None = None
        self.strategy = ""
        self._scorer_timeout = scorer_timeout
        self._steps_left: int | None = None
        self._cut: str | None = None  # why a prompt was not made
        self._asked: dict[int, int] = {}  # hash of a prompt -> how many roots were made of it
        self._selections: list[Selection] = []

    @contextmanager
    def of(self, strategy: str, options: Mapping[str, object]) -> Iterator[None]:
        """The time of the search. On leaving, every branch that it holds is released."""
        if self.strategy:
            raise RuntimeError(
                f"this SearchRun served {self.strategy} already: make one for each search, or call "
                f"{strategy}.body to go on in it"
            )
        self.strategy = strategy
        try:
            if self.journal is not None:
                self.journal.begin(strategy, options, self.root)
            yield
        finally:
            for branch in list(self.held):
                self.release(branch)
            if self.journal is not None:
                self.journal.close()

    # -- what it knows

    @property
    def question(self) -> str:
        """What the user asked: the last message of a chat's user, or the prompt's text."""
        return self.root.question

    @property
    def over(self) -> bool:
        """Whether the budget is used up: every further step would return at once, with nothing."""
        return self.root.budget is not None and self.root.budget.exhausted

    def check_room(self) -> None:
        """Ends the search where the root leaves no position for an answer."""
        limit = self.root.decoder.max_positions
        if limit is not None and self.root.length >= limit:
            raise SearchStoppedError(
                f"the root's {self.root.length} tokens fill the model's {limit} positions"
            )

    # -- model work

    async def step(self, branches: Sequence[Branch], **sampling: Any) -> list[Step]:
        """One step each, to its own boundary; each becomes a node of the tree. sampling: as in
        `Branch.step`."""
        for branch in branches:
            self.record_new_tokens(branch)
        began = self.record.seconds

        async def step(branch: Branch) -> tuple[Step, float]:
            if self.journal is None:
                made = await branch.step(**sampling)
            else:
                made = await self.journal.step(branch, sampling)
            return made, self.record.seconds

        steps = await gather(step(branch) for branch in branches)
        for branch, (made, ended) in zip(branches, steps, strict=True):
            if node := self.record_new_tokens(branch, made, began):
                node.ended = ended
        self.note_memory()
        return [made for made, _ in steps]

    async def complete(self, branch: Branch, **sampling: Any) -> Branch:
        """Steps of the branch until it is finished."""
        while not branch.finished:
            await self.step([branch], **sampling)
        return branch

    async def extend(self, branch: Branch, tokens: str | Sequence[int]) -> list[float]:
        """Appends forced text or token ids as a node of their own; log-probabilities of the tokens, nats.

        A finished branch is open again afterwards.
        """
        self.record_new_tokens(branch)
        began, before = self.record.seconds, branch.length
        logprobs = await self._numbers([branch], lambda: _listed(branch.extend(tokens)), again=True)
        if branch.length > before:
            text = tokens if isinstance(tokens, str) else branch.text_from(before)
            self.record.add(branch, text, began=began, forced=True)
        return logprobs

    async def next_logprobs(self, branch: Branch, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of these tokens as the branch's next, nats."""
        return await self._numbers([branch], lambda: _listed(branch.next_logprobs(token_ids)), again=True)

    async def all_logprobs(self, branch: Branch) -> Tensor:
        """Log-probabilities of the branch's next token, nats: float32 [vocab]. A resumed search computes them
        again, as they are too much for a journal."""
        if self.journal is None:
            return await branch.next_logprobs()
        return await self.journal.repeated_on(branch, branch.next_logprobs)

    async def logprobs_of(self, branch: Branch, tokens: str | Sequence[int]) -> list[float]:
        """Log-probabilities of a continuation that is not kept, nats, one a token."""
        return await self._numbers([branch], lambda: _listed(branch.logprobs_of(tokens)))

    async def prompt(
        self,
        prompt: Prompt,
        *,
        sources: Sequence[int] = (),
        decoder: Decoder | None = None,
        sampling: SamplingParams | None = None,
        seed: int | None = None,
        question: str | None = None,
    ) -> Branch:
        """A new root in the same search, held by the run; what is resident of it already is shared.

        prompt: text becomes a user's turn where the search's own root was given as messages, and another
            model has a chat template.
        sources: nodes that it was made from. decoder: of another model; default: the root's.
        sampling: default: the root's; its seed does not count. seed: from which the branch's own is made,
            another one each time that the same prompt is given; default: the root's.
        question: what its answers are to be scored as answers to, by reward models; default: the prompt.
        """
        knows_chat = decoder is None or decoder.knows_chat
        if isinstance(prompt, str) and is_chat(self.root.prompt) and knows_chat:
            prompt = [{"role": "user", "content": prompt}]
        if not prompt:  # as where a template is all answer, and the answer is empty
            raise SearchStoppedError("a prompt of the search's own is empty")
        asked = zlib.crc32(repr(prompt).encode())
        count = self._asked[asked] = self._asked.get(asked, 0) + 1
        seed = mix(self.root.seed if seed is None else seed, asked, count)
        sampling = replace(sampling or self.root.sampling, seed=seed)
        own = decoder or self.root.decoder

        async def make() -> Branch:
            return await own.root(prompt, sampling, self.root.budget)

        try:
            key = f"{asked:x}-{count}"
            branch = await (make() if self.journal is None else self.journal.root(key, make))
        except PromptTooLongError as error:  # which a strategy may take for the end of one line of several
            self._cut = self._cut or str(error)
            raise
        if question is not None:
            branch.prompt = question
        self.held[branch] = None
        self.extra_roots.add(branch)
        self.record.add_prompt(branch, sources)
        return branch

    async def ask(
        self,
        prompt: Prompt,
        n: int = 1,
        *,
        sources: Sequence[int] = (),
        decoder: Decoder | None = None,
        **sampling: Any,
    ) -> list[str]:
        """Texts of `n` answers to a prompt, each sampled to its end in one step; their branches are released.

        sampling: fields of `SamplingParams` that differ from the root's.
        """
        at_least(1, n=n)
        params = self.whole_reply(**sampling)
        seed = sampling.get("seed")
        root = await self.prompt(prompt, sources=sources, decoder=decoder, sampling=params, seed=seed)
        branches = [root, *(self.fork(root, n - 1) if n > 1 else [])]
        try:
            await gather(self.complete(branch) for branch in branches)
            for branch in branches:
                self.note_end(branch)
            return [branch.text for branch in branches]
        finally:
            self.drop(branches)

    async def p_yes(
        self,
        prompt: Prompt,
        *,
        sources: Sequence[int] = (),
        decoder: Decoder | None = None,
        yes: str = "Yes",
        no: str = "No",
    ) -> float:
        """P(yes) / (P(yes) + P(no)) as the answer to a prompt; nothing is sampled, nothing is kept."""
        asked = await self.prompt(prompt, sources=sources, decoder=decoder)
        try:
            return await self.p_first(asked, yes, no)
        finally:
            self.drop([asked])

    async def p_first(self, branch: Branch, first: str, second: str) -> float:
        """P(first) / (P(first) + P(second)) as continuations of the branch, neither of which is kept."""
        p, q = await gather(self.logprobs_of(branch, text) for text in (first, second))
        return 1 / (1 + math.exp(min(math.fsum(q) - math.fsum(p), 700.0)))

    def whole_reply(self, **sampling: Any) -> SamplingParams:
        """The root's sampling, but for the fields given, for a reply that is taken in one step."""
        whole = {"stop": (), "max_step_tokens": sampling.get("max_tokens", self.root.sampling.max_tokens)}
        return replace(self.root.sampling, **(whole | sampling))

    async def _numbers(
        self, branches: Sequence[Branch], call: Callable[[], Awaitable[list[float]]], *, again: bool = False
    ) -> list[float]:
        """What the engine or a scorer says of branches. again: as in `Journal.numbers`."""
        if self.journal is None:
            return await call()
        return await self.journal.numbers(branches, call, again=again)

    # -- scores

    async def score(self, branches: Sequence[Branch], scorer: Scorer) -> list[float]:
        """Append the scorer's value to each branch's scores. One that fails or hangs ends the search."""
        if not branches:
            return []
        scores = await self._numbers(branches, lambda: self._scored(branches, scorer))
        for branch, score in zip(branches, scores, strict=True):
            branch.scores.append(score)
            self.record.node(branch).score = score
        return scores

    async def _scored(self, branches: Sequence[Branch], scorer: Scorer) -> list[float]:
        limits = [] if self._scorer_timeout is None else [self._scorer_timeout]
        budget = self.root.budget
        if budget is not None and budget.max_seconds is not None:
            limits.append(max(0.0, budget.max_seconds - budget.seconds_used))
        if not limits:
            return await _scores(scorer, branches)
        seconds = min(limits)
        began = time.monotonic()
        try:
            return await wait_within(seconds, _scores(scorer, branches))
        except (asyncio.TimeoutError, SearchStoppedError):
            if time.monotonic() - began < seconds:  # the scorer raised it
                raise
            name = getattr(scorer, "__name__", type(scorer).__name__)
            late = f"scorer {name} gave no scores within {seconds:g} s"
            raise SearchStoppedError(self._spent or late) from None

    # -- search step by step

    def limit_steps(self, max_steps: int) -> None:
        """`advance` ends the search after so many steps."""
        at_least(1, max_steps=max_steps)
        self._steps_left = max_steps

    async def advance(self, live: Sequence[Branch], scorer: Scorer) -> list[Branch]:
        """One scored step of `live`; the branches that go on. Those that finished become candidates.

        Empty when the search is over: nothing left to extend, `max_steps` taken, or the budget used up.
        """
        await self.step(live)
        await self.score(live, scorer)
        for branch in live:
            if branch.finished:
                self.end(branch)
        if self._steps_left is not None:
            self._steps_left -= 1
        if self._steps_left == 0 or self.over:
            return []
        return [branch for branch in live if not branch.finished]

    def expand(self, live: Sequence[Branch], counts: Sequence[int]) -> list[Branch]:
        """Replace each branch by `counts[i]` forks of itself, in order; 0 prunes it."""
        children = []
        kept = [branch for branch, count in zip(live, counts, strict=True) if count]
        kv_tokens, kept_tokens = self.record.shared_tokens(live), self.record.shared_tokens(kept)
        for branch, count in zip(live, counts, strict=True):
            if count:
                children += self.fork(branch, count)
        self.prune(live)
        resident = self.root.decoder.stats().resident_bytes
        self._selections.append(Selection(len(live), len(kept), kv_tokens, kept_tokens, resident))
        self.note_memory()
        return children

    # -- tokens that a strategy chooses itself

    def charge(self, tokens: int) -> bool:
        """Take them out of the budget; False, nothing taken, if too few are left."""
        budget = self.root.budget
        if budget is not None:
            left = budget.remaining_tokens
            if budget.exhausted or (left is not None and left < tokens):
                return False
            budget.tokens_used += tokens
        return True

    async def append(self, branch: Branch, token: int) -> None:
        """A token that the strategy chose, as a sampled one: a node, and counted as generated."""
        self.record_new_tokens(branch)
        began = self.record.seconds
        await self._numbers([branch], lambda: _listed(branch.extend([token])), again=True)
        self.record_new_tokens(branch, began=began)

    def add_leaf(self, branch: Branch, token: int, logprob: float, score: float) -> int:
        """Record a last token after the branch, which itself stays where it is; the id of the new node."""
        text = branch.text_of([token])
        node = self.record.add_below(branch, text, (token,), (logprob,))
        node.score, node.status = score, "finished"
        self.generated += 1
        return node.id

    # -- the end

    def result(self, best: Candidate | None = None, votes: dict[str, float] | None = None) -> SearchResult:
        """The result; branches still held are candidates too, though not complete ones. Branches of further
        prompts are not, unless they were ended.

        The best candidate, unless given, is the highest score among the complete ones, or among all if none
        is complete; ties go to the first of `candidates`.
        """
        for branch in list(self.held):
            if branch not in self.extra_roots:
                self.end(branch)
        if not self.candidates:  # stopped before the first fork
            self.end(self.fork(self.root)[0])
        nodes, ids = self.record.ordered()
        best, *candidates = (
            replace(candidate, node=ids[candidate.node])
            for candidate in (best or max(self.candidates, key=_rank), *self.candidates)
        )
        return SearchResult(
            self.strategy,
            best,
            tuple(candidates),
            tuple(nodes),
            SearchStats(self.record.seconds, self.generated, tuple(self.memory), tuple(self._selections)),
            votes,
            self.stopped or self._spent or self._cut,
        )

    @property
    def _spent(self) -> str | None:
        spent = None if self.root.budget is None else self.root.budget.spent
        return None if spent is None else f"the budget's {spent} is used up"


async def _scores(scorer: Scorer, branches: Sequence[Branch]) -> list[float]:
    try:
        return await score_branches(scorer, branches)
    except ScorerError as error:
        raise SearchStoppedError(str(error)) from error


async def _listed(numbers: Awaitable[Tensor]) -> list[float]:
    listed: list[float] = (await numbers).tolist()
    return listed


def _rank(candidate: Candidate) -> tuple[bool, bool, float]:
    """A candidate cut off before its first token ranks last, whatever a scorer makes of nothing."""
    score = -math.inf if candidate.score is None else candidate.score
    return candidate.complete, bool(candidate.tokens), score


def at_least(least: int, **values: int) -> None:
    """TypeError or ValueError, naming the argument, unless each is an integer of at least `least`."""
    for name, value in values.items():
        integer(name, value, least)
