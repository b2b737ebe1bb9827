"""A search's calls of the model: steps, forced text, log-probabilities, and further prompts."""

from __future__ import annotations

import math
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.checks import at_least
from ..core.params import SamplingParams, mix
from ..core.prompts import is_chat
from ..core.running import gather
from ..errors import PromptTooLongError, TTSError
from .held_branches import HeldBranches
from .journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.interfaces import Branch, Decoder
    from ..core.prompts import Prompt
    from ..core.step import Step


T = TypeVar("T")


class SearchStoppedError(TTSError):
    """Ends a search with what it has; the message says why."""


class ModelCalls(HeldBranches):
    """The branches of a search and the calls on them.

    With a journal, each answer is recorded, and recorded answers are returned without a call.

    Attributes:
        cut_prompt: why a prompt was not made, if one was too long.
    """

    def __init__(self, root: Branch, journal: Journal | None) -> None:
        super().__init__(root, journal)
        self.cut_prompt: str | None = None
        self._consulted: dict[str, int] = {}  # function and hash of its input -> number of calls
        self._asked: dict[int, int] = {}  # hash of a prompt -> number of its roots

    async def step(self, branches: Sequence[Branch], **sampling: Any) -> list[Step]:
        """Runs one step per branch, to its own boundary; each becomes a node of the tree.

        sampling: as in `Branch.step`.
        """
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
        """Steps the branch until it is finished."""
        while not branch.finished:
            await self.step([branch], **sampling)
        return branch

    async def extend(self, branch: Branch, tokens: str | Sequence[int]) -> list[float]:
        """Appends forced text or token ids as one node; returns the tokens' log-probabilities, nats.

        A finished branch is open again afterwards.
        """
        self.record_new_tokens(branch)
        began, before = self.record.seconds, branch.length
        logprobs = await self.numbers([branch], lambda: _listed(branch.extend(tokens)), again=True)
        if branch.length > before:
            text = tokens if isinstance(tokens, str) else branch.text_from(before)
            self.record.add(branch, text, began=began, forced=True)
        return logprobs

    async def append(self, branch: Branch, token: int) -> None:
        """Appends a token chosen by the strategy like a sampled one: a node, counted as generated."""
        self.record_new_tokens(branch)
        began = self.record.seconds
        await self.numbers([branch], lambda: _listed(branch.extend([token])), again=True)
        self.record_new_tokens(branch, began=began)

    async def next_logprobs(self, branch: Branch, token_ids: Sequence[int]) -> list[float]:
        """Returns the log-probabilities of these tokens as the branch's next, nats."""
        return await self.numbers([branch], lambda: _listed(branch.next_logprobs(token_ids)), again=True)

    async def all_logprobs(self, branch: Branch) -> Tensor:
        """Returns the log-probabilities of the branch's next token, nats: float32 [vocab].

        A resumed search computes them again: they are too large for a journal.
        """
        if self.journal is None:
            return await branch.next_logprobs()
        return await self.journal.repeated_on(branch, branch.next_logprobs)

    async def layer_states(self, branches: Sequence[Branch]) -> list[Tensor]:
        """Returns the hidden states of each branch's last token at all layers: float32 [layers + 1, hidden].

        A resumed search computes them again: they are too large for a journal.
        """

        async def states(branch: Branch) -> Tensor:
            if self.journal is None:
                return await branch.layer_states()
            return await self.journal.repeated_on(branch, branch.layer_states)

        return await gather(states(branch) for branch in branches)

    async def logprobs_of(self, branch: Branch, tokens: str | Sequence[int]) -> list[float]:
        """Returns the log-probabilities of a continuation that is not kept, nats, one per token."""
        return await self.numbers([branch], lambda: _listed(branch.logprobs_of(tokens)))

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
        """Makes a new root in the same search, held by the run; resident parts of the prompt are shared.

        prompt: text becomes a user's turn if the search's own root was given as messages and the other model
        has a chat template.
        sources: nodes that it was made from. decoder: of another model; default: the root's.
        sampling: default: the root's; its seed does not count. seed: the branch's own seed is derived from
        it, differently each time that the same prompt is given; default: the root's.
        question: the question that reward models score its answers against; default: the prompt.
        """
        knows_chat = decoder is None or decoder.knows_chat
        if isinstance(prompt, str) and is_chat(self.root.prompt) and knows_chat:
            prompt = [{"role": "user", "content": prompt}]
        if not prompt:  # for example, an empty answer in a template that holds only the answer
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
        except PromptTooLongError as error:  # a strategy may treat it as the end of one of several lines
            self.cut_prompt = self.cut_prompt or str(error)
            raise
        self.held[branch] = None
        self.extra_roots.add(branch)
        self.record.add_prompt(branch, sources)
        if question is not None:
            branch.prompt = question
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
        """Returns the texts of `n` answers to a prompt, each sampled to its end in one step.

        Their branches are released. sampling: fields of `SamplingParams` that differ from the root's.
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
        """Returns P(yes) / (P(yes) + P(no)) as the answer to a prompt; samples and keeps nothing."""
        asked = await self.prompt(prompt, sources=sources, decoder=decoder)
        try:
            return await self.p_first(asked, yes, no)
        finally:
            self.drop([asked])

    async def p_first(self, branch: Branch, first: str, second: str) -> float:
        """Returns P(first) / (P(first) + P(second)) as continuations of the branch; keeps neither."""
        p, q = await gather(self.logprobs_of(branch, text) for text in (first, second))
        return 1 / (1 + math.exp(min(math.fsum(q) - math.fsum(p), 700.0)))

    def whole_reply(self, **sampling: Any) -> SamplingParams:
        """Returns the root's sampling, with these fields changed, for a reply taken in one step.

        The ends of an answer and its steps, and its form, say nothing about a verdict or a critique: `stop`,
        `stop_when` and `constraint` are left out.
        """
        tokens = sampling.get("max_tokens", self.root.sampling.max_tokens)
        whole = {"stop": (), "stop_when": None, "constraint": None, "max_step_tokens": tokens}
        return replace(self.root.sampling, **(whole | sampling))

    async def numbers(
        self, branches: Sequence[Branch], call: Callable[[], Awaitable[list[float]]], *, again: bool = False
    ) -> list[float]:
        """Returns what the engine or a scorer says of branches. again: as in `Journal.numbers`."""
        if self.journal is None:
            return await call()
        return await self.journal.numbers(branches, call, again=again)

    async def outside(
        self,
        name: str,
        asked: str,
        call: Callable[[], Awaitable[T]],
        read: Callable[[object], T],
    ) -> T:
        """Returns the result of a caller's own function, such as a tool.

        name, asked: of the function and its input; a journal tells calls apart by them. Equal ones are
        matched in order.
        call: calls it, for a JSON value. read: restores that value from a journal's.
        """
        if self.journal is None:
            return await call()
        key = f"{name} {zlib.crc32(asked.encode(errors='surrogatepass')):x}"
        count = self._consulted[key] = self._consulted.get(key, 0) + 1
        return await self.journal.value(f"{key}-{count}", call, read)


async def _listed(numbers: Awaitable[Tensor]) -> list[float]:
    listed: list[float] = (await numbers).tolist()
    return listed
