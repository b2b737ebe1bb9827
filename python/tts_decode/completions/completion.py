"""A strategy's request to a caller's own engine, and the engine's answer: plain data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tts_kernels.checks import shown

from ..core.checks import check_choice
from ..errors import EngineError

FinishReason = Literal["stop_string", "eos", "length"]


@dataclass(frozen=True)
class CompletionRequest:
    """One text to continue; the fields mean the same as in `SamplingParams`.

    Attributes:
        prompt: all of the text so far: the prompt and what was generated or forced after it.
        max_tokens: maximum number of tokens of the completion, including a closing end token.
        stop: the completion ends with the first of these strings that appears in it.
        seed: 0 <= seed < 2**31, different for each branch and each position of it: a repeated request has the
            same seed, two requests with the same prompt have different ones.
        logprobs: whether the caller wants log-probabilities, if the engine has them.
        frequency_penalty, presence_penalty: nonzero only if nothing was generated or forced before, so that
            the engine counts the right tokens: those of this completion.
        logit_bias: (token id, bias) pairs; ids are the engine's own.
        id: passed to `AskTell.tell` with the answer; 0 elsewhere.
    """

    prompt: str
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = True
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    id: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def check(self, completion: Completion) -> None:
        """Raises EngineError if the completion cannot be an answer to this request."""
        if len(completion.tokens) > self.max_tokens:
            raise EngineError(
                f"the completion has {len(completion.tokens)} tokens; at most {self.max_tokens} were asked"
            )
        stopped = self.stop and completion.finish_reason == "stop_string"
        if stopped and not any(stop in completion.text for stop in self.stop):
            raise EngineError(
                f"the completion ended for a stop string, but {completion.text[-40:]!r} holds none of "
                f"{self.stop}: completions end WITH their stop string"
            )


@dataclass(frozen=True)
class Completion:
    """An engine's answer. All fields but the first two are optional; empty means not reported.

    Attributes:
        text: what follows the request's prompt, without the text of special tokens. It ends with its stop
            string if one ended it.
        finish_reason: "stop_string", "eos" (the engine's end of text), or "length" (`max_tokens`, or the
            engine's last position).
        tokens: ids; -1 each if only their number is known. After "eos" the last one is the end token. Empty:
            the text counts as one token and an end as one more, in budgets and `max_tokens`.
        logprobs, entropies: one entry per token, nats, of the model's own distribution (temperature 1).
        token_texts: one entry per token, which join to the text, "" for an end token. A branch can be cut
            inside a completion only if they are reported.
    """

    text: str
    finish_reason: FinishReason
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    entropies: tuple[float, ...] = ()
    token_texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"text: got {type(self.text).__name__}, expected a string")
        check_choice("finish_reason", self.finish_reason, get_args(FinishReason))
        for name in ("tokens", "logprobs", "entropies", "token_texts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("logprobs", "entropies", "token_texts"):
            if (count := len(getattr(self, name))) not in (0, len(self.tokens)):
                raise ValueError(
                    f"{name}: got {count} entries for {len(self.tokens)} tokens, expected one a token (-1 as "
                    "the id of a token whose id is not known), or none"
                )
        if self.token_texts and "".join(self.token_texts) != self.text:
            raise ValueError(
                f"token_texts: got {shown(self.token_texts)}, expected what adds up to the text "
                f"{shown(self.text)}"
            )
        if self.token_texts and self.finish_reason == "eos" and self.token_texts[-1]:
            raise ValueError(
                f"token_texts: got {self.token_texts[-1]!r} last after 'eos', expected '' for the end token"
            )
        if self.finish_reason == "stop_string" and not self.text:
            raise ValueError("text: got none after 'stop_string', expected it to end with the stop string")

    @property
    def ids(self) -> tuple[int, ...]:
        """`tokens`, or the number of tokens that the completion counts as if the engine reports none."""
        return self.tokens or (-1,) * (bool(self.text) + (self.finish_reason == "eos"))


Complete = Callable[[CompletionRequest], Awaitable[Completion]]
"""Continues one text. May be called many times at once."""

Score = Callable[[str, Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
"""score(prompt, continuations) returns each continuation's token log-probabilities, nats."""
