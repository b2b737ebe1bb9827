"""What a branch can ask of the scheduler: each request knows the tokens it lacks and when it is done."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tts_decode.branch import Branch
from tts_decode.calls import Call, Hold
from tts_decode.sampling import SamplingParams, token_logprobs
from tts_decode.steps import FINAL_REASONS, Step
from tts_decode.text import StopFinder, continuation


@dataclass
class Feed:
    """Tokens of one request in one forward."""

    request: Request
    tokens: list[int]
    rows_end: int = 0  # its rows of the logits end here; they begin where those of the feed before end
    tokens_end: int = 0  # the same for the forward's tokens


class Request:
    """A call that waits for the engine. `future` carries its result; `branch` is set once it is admitted."""

    needs_hidden = False  # whether `fed` must be given hidden states
    # Position from which on the missing tokens are forced text, which sparse attention reads whole. Those
    # before, if any, are read as when they were sampled, and fed one by one.
    forced_from = sys.maxsize
    starts_over = False  # whether it goes on where the branch lost its KV
    call: Call | None = None  # the call of a search that it belongs to
    hold: Hold | None = None  # where it stops until its search goes on
    share_limit: int | None = None  # tokens at most that a prompt shares; None: what is resident
    shared = 0  # tokens that a prompt shares
    order = 0  # its place among those that wait
    seen = False  # by a tick
    branch: Branch
    future: asyncio.Future[Any]

    def __init__(self, branch: Branch | None) -> None:
        if branch is not None:
            self.branch = branch
        self.admitted = branch is not None

    @property
    def waits(self) -> bool:
        return not self.future.done()

    @property
    def held(self) -> bool:
        """Whether it stops where it is."""
        if self.hold is None:
            return False
        if not self.admitted:
            return not self.hold.tokens
        branch = self.branch
        return branch._kv_length >= self.hold.resident and len(branch.tokens) >= self.hold.tokens

    @property
    def progress(self) -> Hold:
        """Where to hold the same request in another process, so that it is as far."""
        if not self.admitted:
            return Hold(0, 0, 0, self.order)
        return Hold(len(self.branch.tokens), self.branch._kv_length, self.shared, self.order)

    def note_tick(self, order: int) -> None:
        self.seen, self.order = True, order
        if self.call is not None:
            self.call.clock.ticked = True

    def start(self) -> None:
        """Marks the branch as waiting."""
        self.branch._busy = True

    def begin_tick(self) -> None:
        """Called before each tick: the request may close without the model."""

    def missing(self) -> list[int]:
        """Tokens to feed next, in order; empty when the logits after the branch's last token are there."""
        return self.branch.tokens[self.branch._kv_length :]

    def logit_rows(self, count: int) -> range:
        """Of the first `count` missing tokens those whose logits are wanted: from the branch's last on."""
        return range(max(0, len(self.branch.tokens) - 1 - self.branch._kv_length), count)

    def embeds(self, position: int) -> Tensor:
        """Input [hidden] of a missing token of id -1, at its position in the branch."""
        return self.branch._embeds[position]

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        """The first `count` missing tokens are in the tree.

        `logits`: of `logit_rows`, float32; `hidden`: rows of all, float32.
        """
        branch = self.branch
        branch._kv_length += count
        if branch._kv_length == len(branch.tokens):
            branch._logits = logits[-1].clone()  # not a view, which would keep the whole batch's logits
            self.resolve(branch)

    def resolve(self, result: Any) -> None:
        self.branch._busy = False
        if not self.future.done():
            self.future.set_result(result)

    def undo(self) -> None:
        """The call failed or was cancelled."""
        self.branch._busy = False


class AdvanceRequest(Request):
    """Computes the logits after the branch's last token."""


class RootRequest(Request):
    """A prompt's way into the tree; its result is the branch that `make` builds over what is resident, as far
    as `share_limit` says. Where the model's weights change meanwhile it starts over.

    Without LM head (`logits` False) no logits are computed, and what is resident whole is not fed at all.
    """

    forced_from = 0
    starts_over = True

    def __init__(
        self, tokens: list[int], make: Callable[[int | None], Branch], *, logits: bool = True
    ) -> None:
        super().__init__(None)
        self.tokens = tokens
        self._make = make
        self._logits = logits

    def start(self) -> None:
        """There is no branch yet."""

    def admit(self) -> None:
        self.branch = self._make(self.share_limit)
        self.shared = self.branch._kv_length
        self.branch._busy = True
        self.admitted = True

    def begin_tick(self) -> None:
        if self.admitted and not self.missing():
            self.resolve(self.branch)

    def logit_rows(self, count: int) -> range:
        return super().logit_rows(count) if self._logits else range(0)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        if self._logits:
            super().fed(count, logits, hidden)
        else:
            self.branch._kv_length += count
            self.begin_tick()

    def undo(self) -> None:
        if self.admitted and not self.branch.released:
            self.branch.release()


class AppendRequest(Request):
    """Forced tokens. The branch's own token list grows only when all of them are in.

    A single token is read as one that was sampled: whoever decodes by hand forces them one by one.
    """

    def __init__(self, branch: Branch, tokens: list[int]) -> None:
        super().__init__(branch)
        self._tokens = branch.tokens + tokens
        if len(tokens) > 1:
            self.forced_from = len(branch.tokens)
        self._kv_before = branch._kv_length
        self._logprobs: list[float] = []
        self._entropies: list[float] = []

    def missing(self) -> list[int]:
        return self._tokens[self.branch._kv_length :]

    def finish(self, logits: Tensor | None, result: Any) -> None:
        """All is in. logits: after the last token, where they were computed."""
        branch = self.branch
        branch.tokens = self._tokens
        branch.logprobs += self._logprobs
        branch.entropies += self._entropies
        branch.finish_reason = None
        branch._logits = logits
        self.resolve(result)

    def undo(self) -> None:
        super().undo()
        if not self.branch.released and self.branch._kv_length > self._kv_before:
            self.branch._kv_length = self._kv_before
            self.branch.decoder._tree.truncate(self.branch.id, self._kv_before)


class ExtendRequest(AppendRequest):
    """Forced tokens and their log-probabilities."""

    def __init__(self, branch: Branch, tokens: list[int]) -> None:
        super().__init__(branch, tokens)
        if branch._logits is not None:
            self._score(branch._logits[None])

    def begin_tick(self) -> None:
        single = len(self._tokens) == len(self.branch.tokens) + 1
        if single and self._scored == len(self._tokens):  # its logits were there: it is fed when needed
            self.finish(None, self._logprobs)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        self.branch._kv_length += count
        self._score(logits)
        if self.branch._kv_length == len(self._tokens):
            self.finish(logits[-1].clone(), self._logprobs)

    @property
    def _scored(self) -> int:
        return len(self.branch.tokens) + len(self._logprobs)

    def _score(self, logits: Tensor) -> None:
        """Takes the log-probabilities of the next forced tokens from rows of logits."""
        targets = self._tokens[self._scored : self._scored + len(logits)]
        if targets:
            logprobs, entropies = token_logprobs(logits[: len(targets)], targets)
            self._logprobs += logprobs
            self._entropies += entropies


class ReadRequest(AppendRequest):
    """Forced tokens and the last hidden states of some of them, float32 [len(rows), hidden]; no logits.

    rows: indices into the tokens, ascending.
    """

    needs_hidden = True

    def __init__(self, branch: Branch, tokens: list[int], rows: list[int]) -> None:
        super().__init__(branch, tokens)
        self.forced_from = len(branch.tokens)
        self._positions = [len(branch.tokens) + row for row in rows]
        self._read: list[Tensor] = []
        self._logprobs = self._entropies = [math.nan] * len(tokens)

    def logit_rows(self, count: int) -> range:
        return range(0)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        assert hidden is not None  # `needs_hidden`
        begin = self.branch._kv_length
        self.branch._kv_length += count
        wanted = [position - begin for position in self._positions if begin <= position < begin + count]
        self._read.append(hidden[wanted])
        if self.branch._kv_length == len(self._tokens):
            self.finish(None, torch.cat(self._read).cpu())


class EmbedsRequest(ReadRequest):
    """Embeddings [n, hidden] in place of tokens, and the last hidden states of all of them."""

    def __init__(self, branch: Branch, embeds: Tensor) -> None:
        super().__init__(branch, [-1] * len(embeds), list(range(len(embeds))))
        self._new = dict(enumerate(embeds, start=len(branch.tokens)))

    def embeds(self, position: int) -> Tensor:
        return self._new[position] if position in self._new else super().embeds(position)

    def finish(self, logits: Tensor | None, result: Any) -> None:
        self.branch._embeds = self.branch._embeds | self._new
        super().finish(logits, result)


class ReplayRequest(AppendRequest):
    """A recorded step: its tokens are fed as when they were sampled, all of them where their hidden states
    were kept, else all but the last."""

    def __init__(self, branch: Branch, step: Step) -> None:
        super().__init__(branch, list(step.tokens))
        self.forced_from = sys.maxsize
        self._step = step
        self._logprobs, self._entropies = list(step.logprobs), list(step.entropies)
        self._end = len(self._tokens) - (step.hidden is None)

    def begin_tick(self) -> None:
        if not self.missing():
            self._close(None)

    def missing(self) -> list[int]:
        return self._tokens[self.branch._kv_length : self._end]

    def logit_rows(self, count: int) -> range:
        last = len(self._tokens) - 1 - self.branch._kv_length  # fed where hidden states were kept
        return range(last, count)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        self.branch._kv_length += count
        if not self.missing():
            self._close(logits[-1].clone() if len(logits) else None)

    def _close(self, logits: Tensor | None) -> None:
        branch, step = self.branch, self._step
        self.finish(logits, step)
        if step.reason in FINAL_REASONS:
            branch.finish_reason = step.reason
        branch.steps.append(step)
        branch._step_ends.append(len(branch.tokens))
        if branch.budget is not None:
            branch.budget.count(len(step.tokens))


class StepRequest(Request):
    """Generates up to the next step boundary."""

    def __init__(self, branch: Branch, params: SamplingParams, seed: int) -> None:
        super().__init__(branch)
        self.params = params
        self.seed = seed
        self._start = len(branch.tokens)
        self._reason: str | None = None
        tokenizer = branch.decoder.tokenizer
        self.needs_hidden = branch.decoder.keep_hidden > 0  # for the whole step, whoever else begins or ends
        self._stops = StopFinder(tokenizer, params.stop, branch.tokens) if params.stop else None
        self._hidden_sum: Tensor | float = 0.0

    @property
    def samples(self) -> bool:
        """Whether it waits for a token and the logits are there."""
        return self._reason is None and self.branch._logits is not None

    @property
    def logits(self) -> Tensor:
        assert self.branch._logits is not None  # `samples`
        return self.branch._logits

    def begin_tick(self) -> None:
        if self._reason is None and (limit := self._limit()):
            self._close(limit)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        branch = self.branch
        if self.needs_hidden and hidden is not None:
            skipped = max(0, self._start - branch._kv_length)
            self._hidden_sum = self._hidden_sum + hidden[skipped:].sum(0)
        branch._kv_length += count
        if branch._kv_length == len(branch.tokens):
            branch._logits = logits[-1]
        if self._reason is not None and branch._logits is not None:
            self._close(self._reason)

    def take(self, token: int, logprob: float, entropy: float) -> int:
        """Appends a sampled token; returns how many were taken: 0 when another branch used up the budget."""
        branch = self.branch
        if limit := self._limit():
            self._close(limit)
            return 0
        branch.tokens.append(token)
        branch.logprobs.append(logprob)
        branch.entropies.append(entropy)
        branch._logits = None
        if branch.budget is not None:
            branch.budget.count(1)
        if reason := self._boundary(token):
            self._close(reason)
        return 1

    def _limit(self) -> str | None:
        """Why no further token may be sampled, whatever it would be."""
        branch = self.branch
        if branch.finish_reason is not None:
            return branch.finish_reason
        if len(branch.tokens) - branch.prompt_length >= self.params.max_tokens:
            return "max_tokens"
        if branch.decoder.max_positions is not None and len(branch.tokens) >= branch.decoder.max_positions:
            return "length"
        return "budget" if branch.budget is not None and branch.budget.exhausted else None

    def _boundary(self, token: int) -> str | None:
        """Why the step ends after `token`, if it does."""
        branch = self.branch
        if token in branch.decoder.eos_token_ids:
            return "eos"
        if token in self.params.stop_token_ids:
            return "stop_token"
        if self._stops is not None and self._stops.push(token):
            return "stop_string"
        if limit := self._limit():
            return limit
        return "max_step_tokens" if len(branch.tokens) - self._start >= self.params.max_step_tokens else None

    def _close(self, reason: str) -> None:
        """Ends the step; when hidden states are kept, only after its last token went through the model."""
        branch = self.branch
        self._reason = reason
        count = len(branch.tokens) - self._start
        keep_hidden = self.needs_hidden and count > 0
        if keep_hidden and branch._logits is None:
            return
        if branch._logits is not None:
            branch._logits = branch._logits.clone()  # not a view, which would keep the whole batch's logits
        if reason in FINAL_REASONS:
            branch.finish_reason = reason
        if not count:
            self.resolve(Step("", (), (), (), reason))
            return
        step = Step(
            text=continuation(branch.decoder.tokenizer, branch.tokens, self._start),
            tokens=tuple(branch.tokens[self._start :]),
            logprobs=tuple(branch.logprobs[-count:]),
            entropies=tuple(branch.entropies[-count:]),
            reason=reason,
            hidden=torch.as_tensor(self._hidden_sum).cpu() / count if keep_hidden else None,
        )
        branch.steps.append(step)
        branch._step_ends.append(len(branch.tokens))
        self.resolve(step)
