"""The request of a step: draws tokens up to the step's boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.constraints.grammars import compile_aside
from ..core.constraints.guide import Guide
from ..core.detokenizer import continuation, text_stream
from ..core.params import SamplingParams
from ..core.step import FINAL_REASONS, Step, TopLogprobs
from ..core.stop_finder import StopFinder
from .live_path import LivePath
from .logit_edits import LogitEdits
from .requests import Request
from .sampler import Draw
from .token_table import TokenTable


async def step_request(path: LivePath, overrides: Mapping[str, Any]) -> StepRequest | None:
    """Returns a request for the next step with fields overridden; None if the branch is finished."""
    if "constraint" in overrides:
        await compile_aside(overrides["constraint"], path.runtime.tokenizer)
    if path.finish_reason is None:
        path.check_ready()
    else:
        path.check_idle()
    if not path.runtime.engine.has_lm_head:
        path.require_lm_head("step")
    params = replace(path.sampling, **overrides) if overrides else path.sampling
    if path.finish_reason is not None:
        return None
    if params.suppress_token_ids or params.logit_bias:
        params.check_vocabulary(path.runtime.engine.config.vocab_size)
    if path.logits is None and path.kv_length == len(path.tokens):
        path.drop_logits()
    held = params.constraint is not None or path.sampling.constraint is not None
    guide = path.step_guide(params.constraint) if held else None
    return StepRequest(path, params, overrides.get("seed", path.seed), guide)


class StepRequest(Request[Step]):
    """Generates up to the next step boundary.

    Attributes:
        params, seed: what it draws with. begin: length of the path at its beginning.
        edits: what changes its logits; None: nothing does.
        tops, certainties: the most probable tokens and the self-certainty at each token's position, if
            requested.
        on_token: called for each token that was taken.
    """

    def __init__(self, path: LivePath, params: SamplingParams, seed: int, guide: Guide | None = None) -> None:
        super().__init__(path)
        self.params = params
        self.seed = seed
        self.begin = len(path.tokens)
        self.edits: LogitEdits | None = None
        self._seen: TokenTable | None = None  # used if the repetition penalty is the only change
        if params.frequency_penalty or params.presence_penalty or params.logit_bias or guide is not None:
            vocab = path.runtime.engine.config.vocab_size
            self.edits = LogitEdits(params, path.tokens, path.prompt_length, guide, vocab)
        elif params.repetition_penalty != 1.0:
            self._seen = TokenTable(path.tokens)
        self.tops: list[TopLogprobs] = []
        self.certainties: list[float] = []
        self.on_token: Callable[[], None] | None = None
        # Length of the path at which the branch ends.
        self._full = min(
            path.prompt_length + params.max_tokens, self.begin + path.runtime.positions_left(self.begin)
        )
        self._reason: str | None = None
        self.needs_hidden = path.runtime.keep_hidden > 0  # fixed for the whole step
        self._stops = StopFinder(path.runtime.tokenizer, params.stop, path.tokens) if params.stop else None
        self._text = ""  # after the prompt; kept if `stop_when` needs it
        if params.stop_when is not None:
            self._text = path.text
            self._stream = text_stream(path.runtime.tokenizer, path.tokens, special=False)
        self._hidden_sum: Tensor | float = 0.0

    @property
    def samples(self) -> bool:
        """Whether it waits for a token whose logits are known."""
        return self._reason is None and self.path.logits is not None

    @property
    def logits(self) -> Tensor:
        assert self.path.logits is not None  # `samples`
        return self.path.logits

    @property
    def held(self) -> bool:
        """Same as in `Request`, and it has sampled all that it can and may."""
        may_sample = self.hold is not None and len(self.path.tokens) < self.hold.tokens and self.samples
        return super().held and not may_sample

    def begin_tick(self) -> None:
        if self._reason is None and (limit := self._limit()):
            self._close(limit)

    def fed(self, count: int, logits: Tensor, hidden: Tensor | None) -> None:
        path = self.path
        if self.needs_hidden and hidden is not None:
            skipped = max(0, self.begin - path.kv_length)
            self._hidden_sum = self._hidden_sum + hidden[skipped:].sum(0)
        path.kv_length += count
        if path.kv_length == len(path.tokens):
            path.logits = logits[-1]
        if self._reason is not None and path.logits is not None:
            self._close(self._reason)

    def draw(self, uniform: float) -> Draw:
        """Returns what decides the draw of its next token, with the number of its seed and length."""
        if self._seen is None:
            return Draw(self.params, uniform, edits=self.edits)
        return Draw(self.params, uniform, self._seen.entries["token"])

    def take(
        self,
        token: int,
        logprob: float,
        entropy: float,
        top: TopLogprobs | None,
        certainty: float | None,
    ) -> int:
        """Appends a sampled token; returns how many were taken: 0 if another path used up the budget.

        Raises:
            ConstraintError: the constraint cannot continue after the token, which is not appended.
        """
        path = self.path
        if path.budget is not None and path.budget.exhausted:
            self._close("budget")
            return 0
        if self.edits is not None:
            try:
                self.edits.take(token)
            except Exception:
                path.guide = None  # it may be past the token; rebuilt on demand
                raise
        path.tokens.append(token)
        path.logprobs.append(logprob)
        path.entropies.append(entropy)
        path.logits = None
        if path.budget is not None:
            path.budget.count(1)
        if self._seen is not None:
            self._seen.place(token)
        if top is not None:
            self.tops.append(top)
        if certainty is not None:
            self.certainties.append(certainty)
        if self.on_token is not None:
            self.on_token()
        if reason := self._boundary(token):
            self._close(reason)
        return 1

    def undo(self) -> None:
        super().undo()
        if self.path.logits is not None:
            self.path.logits = self.path.logits.clone()  # not a view, which would keep the whole batch's

    def _limit(self) -> str | None:
        """Returns why no further token may be sampled, whatever it would be."""
        path = self.path
        if len(path.tokens) >= self._full:
            reached = len(path.tokens) - path.prompt_length >= self.params.max_tokens
            return "max_tokens" if reached else "length"
        if path.budget is not None and path.budget.exhausted:
            return "budget"
        return None if self.edits is None else self.edits.blocked

    def _boundary(self, token: int) -> str | None:
        """Returns why the step ends after `token`, if it does."""
        path = self.path
        if token in path.runtime.eos_token_ids:
            return "eos"
        if self.params.stop_when is not None:
            self._text += self._stream.add((token,))
            if self.params.stop_when(self._text):
                return "stop_when"
        if token in self.params.stop_token_ids:
            return "stop_token"
        if self._stops is not None and self._stops.push(token):
            return "stop_string"
        if limit := self._limit():
            return limit
        return "max_step_tokens" if len(path.tokens) - self.begin >= self.params.max_step_tokens else None

    def _close(self, reason: str) -> None:
        """Ends the step; if hidden states are kept, only after its last token went through the model."""
        path = self.path
        self._reason = reason
        count = len(path.tokens) - self.begin
        keep_hidden = self.needs_hidden and count > 0
        if keep_hidden and path.logits is None:
            return
        if path.logits is not None:
            path.logits = path.logits.clone()  # not a view, which would keep the whole batch's logits
        if reason in FINAL_REASONS:
            path.finish_reason = reason
        if not count:
            self.resolve(Step("", (), (), (), reason))
            return
        step = Step(
            text=continuation(path.runtime.tokenizer, path.tokens, self.begin),
            tokens=tuple(path.tokens[self.begin :]),
            logprobs=tuple(path.logprobs[-count:]),
            entropies=tuple(path.entropies[-count:]),
            reason=reason,
            hidden=torch.as_tensor(self._hidden_sum).cpu() / count if keep_hidden else None,
            top_logprobs=tuple(self.tops),
            self_certainties=tuple(self.certainties),
        )
        path.record_step(step)
        self.resolve(step)
