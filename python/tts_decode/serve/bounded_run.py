"""A search that a client requested, within the server's limits.

Its branches are counted, and its further prompts and forced texts are charged to the budget. The reasons for
which it stopped have fixed wording, and the KV of candidates stays until one is chosen.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tts_kernels import OutOfPagesError

from ..decoding.branch import TreeBranch
from ..decoding.decoder import TreeDecoder
from ..decoding.kv_budget import Pin
from ..errors import PromptTooLongError, ScorerError, TTSError
from ..search import Candidate, SearchRun
from ..search.model_calls import SearchStoppedError

if TYPE_CHECKING:
    from ..core.interfaces import Branch
    from ..core.step import Step
    from ..rewards import Scorer

_log = logging.getLogger(__name__)
_TOO_LONG = "a prompt or text of the search is too long for the model or its memory"
_NO_MEMORY = "no memory was left for the KV of the search"
_SCORER = "the scorer failed"
_PINNED = 128  # last candidates


class WrongScoresError(TTSError):
    """A scorer did not return one finite number per branch; the message is for the log only."""


class BoundedRun(SearchRun):
    """A search within limits.

    Args:
        most: branches that it may hold.

    Attributes:
        began: whether the model was used; anything refused earlier is an option's fault.
    """

    def __init__(self, decoder: TreeDecoder, root: TreeBranch, most: int) -> None:
        super().__init__(root)
        self._decoder = decoder
        self.began = False
        self._most = most
        self._pins: dict[tuple[int, ...], Pin] = {}  # of candidates, by token ids

    async def step(self, branches: Sequence[Branch], **sampling: Any) -> list[Step]:
        self.began = True
        return await super().step(branches, **sampling)

    def fork(self, branch: Branch, n: int = 1, at: int | None = None) -> list[Branch]:
        self.began = True
        self._check_width(n)
        return super().fork(branch, n, at)

    async def prompt(self, prompt: Any, **options: Any) -> Branch:
        self.began = True
        self._check_width(1)
        if self.over:
            raise SearchStoppedError("the budget is used up")
        try:
            branch = await super().prompt(prompt, **options)
        except PromptTooLongError:
            self.cut_prompt = _TOO_LONG
            raise
        if isinstance(branch, TreeBranch):
            self._pay(branch.length - branch.cached_tokens)
        return branch

    async def extend(self, branch: Branch, tokens: str | Sequence[int]) -> list[float]:
        self.began = True
        before = branch.length
        logprobs = await super().extend(branch, tokens)
        self._pay(branch.length - before)
        return logprobs

    async def score(self, branches: Sequence[Branch], scorer: Scorer) -> list[float]:
        try:
            return await super().score(branches, scorer)
        except (TypeError, ValueError) as error:
            if isinstance(error, TTSError):
                raise
            raise WrongScoresError(str(error)) from error

    def end(self, branch: Branch, score: float | None = None) -> Candidate:
        if isinstance(branch, TreeBranch) and branch.kv_length and branch not in self.extra_roots:
            behind = tuple(branch.tokens[branch.prompt_length :])
            if behind not in self._pins:
                self._pins[behind] = self._decoder.pin(branch)
            if len(self._pins) > _PINNED:
                self._pins.pop(next(iter(self._pins))).release()
        return super().end(branch, score)

    def pin_of(self, candidate: Candidate) -> Pin | None:
        """Returns what holds the KV of a candidate, for the caller to release; None if nothing does."""
        return self._pins.pop(candidate.tokens, None)

    def stop(self, error: Exception) -> None:
        if isinstance(error.__cause__, ScorerError):
            _log.warning("a scorer failed:\n%s", "".join(traceback.format_exception(error)))
            self.stopped = _SCORER
        elif isinstance(error, OutOfPagesError):
            self.stopped = _NO_MEMORY
        elif isinstance(error, PromptTooLongError):
            self.stopped = _TOO_LONG
        else:
            super().stop(error)  # the search's own wording

    def release_candidates(self) -> None:
        for pin in self._pins.values():
            pin.release()
        self._pins.clear()

    def _pay(self, tokens: int) -> None:
        """Charges tokens that were computed, not sampled, to the budget."""
        if self.root.budget is not None:
            self.root.budget.count(tokens)

    def _check_width(self, more: int) -> None:
        if len(self.held) + more > self._most:
            raise SearchStoppedError(f"the search holds {self._most} branches, as many as it may")
