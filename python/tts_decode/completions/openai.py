"""Completions from a server with OpenAI's API."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tts_kernels.checks import is_integer, is_real

from ..errors import EngineError, UnsupportedByEngineError
from .completion import Completion, CompletionRequest, FinishReason
from .json_post import JSONPost

_ROUNDING = 1e-3  # nats that a server's rounding may put a log-probability above 0; it counts as 0
# Of an answer: about a hundred bytes per token with its log-probability, and the prompt if it is echoed.
_BYTES, _BYTES_A_TOKEN, _BYTES_A_CHARACTER = 1 << 20, 1 << 12, 1 << 8


class OpenAICompletions:
    """A `complete` for `TextDecoder`: POST base_url/completions of vLLM, SGLang, llama.cpp's server, others.

    Args:
        base_url: the part before "/completions", such as "http://localhost:8000/v1". It may have a query, a
            user and a password.
        model: the model's name on the server.
        api_key: sent as a bearer token.
        timeout: total seconds that a call may take, including retries.
        retries: number of retries after a status of 429 or 5xx, or a broken connection; waits are `backoff`
            seconds, doubled each time, or the server's Retry-After.
        max_connections: maximum number of concurrent calls.
        extensions: send fields beyond OpenAI's own API: they switch off filters that a server applies by
            default, ask for token ids, and keep stop strings. Servers ignore unknown fields; OpenAI's own
            refuses them.
        local_stops: look for stop strings here instead of on the server: for servers that drop the string and
            do not report that one ended the text. Tokens generated beyond it are paid for and dropped.

    A stop string that the server dropped is put back. Log-probabilities are as the server computes them; an
    end token without one counts as 0.

    Keys and passwords appear in no message and in no log of the HTTP client, even if the server sends them
    back.

    Attributes:
        url: the address called, without its secrets.

    Raises (from the calls):
        EngineError: the server cannot be reached, refuses, or its answer cannot be a completion of the
            request; the message names url, status and the beginning of the answer.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        retries: int = 4,
        backoff: float = 0.5,
        max_connections: int = 64,
        extensions: bool = True,
        local_stops: bool = False,
    ) -> None:
        self._post = JSONPost(
            base_url,
            "/completions",
            api_key,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            max_connections=max_connections,
        )
        self.url = self._post.url
        self.model = model
        self._extensions, self._local_stops = extensions, local_stops

    async def __call__(self, request: CompletionRequest) -> Completion:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if request.stop and not self._local_stops:
            body["stop"] = list(request.stop)
        if request.logprobs:
            body["logprobs"] = 1
        for name in ("frequency_penalty", "presence_penalty"):
            if penalty := getattr(request, name):
                body[name] = penalty
        if request.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in request.logit_bias}
        if self._extensions:
            body |= _extended(request)
        elif (request.top_k, request.min_p, request.repetition_penalty) != (0, 0.0, 1.0):
            raise UnsupportedByEngineError(
                "OpenAI's API has no top_k, min_p, repetition_penalty: leave them at their defaults, or let "
                "OpenAICompletions use extensions"
            )
        answer = await self._post(body, _max_bytes(request.prompt, request.max_tokens))
        choice = self._choice(answer)
        output = self._output(choice, answer.get("usage"), request.max_tokens)
        if self._local_stops and (end := _stop_end(output.text, request.stop)):
            return output.cut(end).completion("stop_string")
        return self._finished(output, choice, () if self._local_stops else request.stop)

    async def score(self, prompt: str, continuations: Sequence[str]) -> list[list[float]]:
        """Returns the log-probability of each token of each continuation after `prompt`, nats.

        It is the `score` of a `TextDecoder` if the server can echo a prompt with log-probabilities. A token
        that begins in the prompt and ends in the continuation counts in full.
        """
        return list(await asyncio.gather(*[self._score(prompt, text) for text in continuations]))

    async def _score(self, prompt: str, continuation: str) -> list[float]:
        body = {
            "model": self.model,
            "prompt": prompt + continuation,
            "max_tokens": 1,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 1,
        }
        answer = await self._post(body, _max_bytes(prompt + continuation, 1))
        output = self._output(self._choice(answer), None, 1)
        try:
            echoed = len(output.pieces) - _completion_tokens(answer.get("usage"), 1, unknown=1)
        except (KeyError, TypeError, ValueError) as error:
            raise self._post.error(f"usage of an unknown form ({error})", answer) from None
        pieces, logprobs = output.pieces[:echoed], output.logprobs[:echoed]
        first = echoed
        while first > 0 and sum(map(len, pieces[first:])) < len(continuation):
            first -= 1
        scores = logprobs[first:]
        if not "".join(pieces[first:]).endswith(continuation) or any(map(math.isnan, scores)):
            raise EngineError(
                f"POST {self.url}: the answer holds no log-probabilities of tokens that end with "
                f"{continuation[-40:]!r}; leave out score= where a server cannot echo a prompt"
            )
        return list(scores)

    # -- what an answer says

    def _choice(self, answer: dict[str, Any]) -> dict[str, Any]:
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
            raise self._post.error("no completion in the answer", answer)
        return choice

    def _output(self, choice: dict[str, Any], usage: object, max_tokens: int) -> _Output:
        try:
            return _read_output(choice, usage, max_tokens)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"text, logprobs, token_ids or usage of an unknown form ({error})"
            raise self._post.error(what, choice) from None  # the cause quotes the server unredacted

    def _finished(self, output: _Output, choice: dict[str, Any], stops: Sequence[str]) -> Completion:
        """Returns the completion with its finish reason, and with the stop string that ended it."""
        reason = choice.get("finish_reason")
        if reason == "length":
            return output.completion("length")
        if reason != "stop":
            raise self._post.error(f"finish_reason {reason!r}", choice)
        told = "stop_reason" in choice or "matched_stop" in choice
        stop = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's and SGLang's names
        if isinstance(stop, str) and stop not in stops:
            raise self._post.error(f"a stop string that was not asked for, {stop!r}", choice)
        if not (stop is None or isinstance(stop, str) or is_integer(stop)):  # a number is a token's id
            raise self._post.error(f"stop reason {stop!r}", choice)
        if isinstance(stop, str):
            kept = _stop_end(output.text, [stop]) is not None
            return (output if kept else output.with_stop(stop)).completion("stop_string")
        if _stop_end(output.text, stops):
            return output.completion("stop_string")
        if stops and not told:
            raise EngineError(
                f"POST {self.url}: the answer does not say whether a stop string or the end of text ended "
                "it; make OpenAICompletions with local_stops=True"
            )
        return output.completion("eos")


@dataclass(frozen=True)
class _Output:
    """What was generated.

    The tuples have one entry per token, or none; `pieces` are longer than the text if the server dropped an
    end or a stop string from it.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    pieces: tuple[str, ...]

    def with_stop(self, stop: str) -> _Output:
        return _Output(self.text + stop, self.tokens, self.logprobs, self.pieces)

    def cut(self, end: int) -> _Output:
        """Returns the output up to the token that holds character `end` - 1.

        If the texts of tokens are unknown, all that were generated count.
        """
        length = 0
        for count, piece in enumerate(self.pieces if "".join(self.pieces).startswith(self.text) else (), 1):
            length += len(piece)
            if length >= end:
                return _Output(
                    self.text[:length], self.tokens[:count], self.logprobs[:count], self.pieces[:count]
                )
        return _Output(self.text[:end], self.tokens, self.logprobs, ())

    def completion(self, reason: FinishReason) -> Completion:
        tokens, logprobs, pieces = self.tokens, self.logprobs, self._texts()
        if reason == "eos" and pieces and pieces[-1]:  # the server does not list the end token
            tokens, pieces = (*tokens, -1), (*pieces, "")
            logprobs = (*logprobs, 0.0) if logprobs else ()
        return Completion(self.text, reason, tokens, logprobs, (), pieces)

    def _texts(self) -> tuple[str, ...]:
        """Returns the pieces, clipped to the text; none if they spell something else.

        That happens with tokens that hold a part of a character.
        """
        if not "".join(self.pieces).startswith(self.text):
            return ()
        left = len(self.text)
        texts = []
        for piece in self.pieces:
            texts.append(piece[:left])
            left -= len(texts[-1])
        return tuple(texts)


def _read_output(choice: dict[str, Any], usage: object, max_tokens: int) -> _Output:
    """Reads tokens as far as the server reports them: ids, or their texts, or their number.

    Raises Python's errors for fields of other types, and ValueError for impossible values.
    """
    told = choice.get("logprobs") or {}
    if "content" in told:  # as in OpenAI's chat API, one object per token
        entries = told["content"] or []
        pieces, logprobs = [entry["token"] for entry in entries], [entry["logprob"] for entry in entries]
    else:
        pieces, logprobs = told.get("tokens") or [], told.get("token_logprobs") or []
    count = len(pieces) or _completion_tokens(usage, max_tokens, unknown=0)
    tokens = choice.get("token_ids") or [-1] * count
    known = len(pieces) == len(logprobs) == len(tokens)
    return _Output(
        _text(choice["text"]),
        tuple(_integer(token, -1, 2**31 - 1) for token in tokens),
        tuple(map(_logprob, logprobs)) if known else (),
        tuple(map(_text, pieces)) if known else (),
    )


def _completion_tokens(usage: object, max_tokens: int, *, unknown: int) -> int:
    """Returns the server's count; an end token may be one more than was requested."""
    if usage is None:
        return unknown
    if not isinstance(usage, dict):
        raise TypeError(f"usage: expected an object, got {usage!r}")
    return _integer(usage.get("completion_tokens", unknown), 0, max_tokens + 1)


def _integer(value: object, least: int, most: int) -> int:
    if not is_integer(value):
        raise TypeError(f"expected an integer, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"expected an integer from {least} to {most}, got {value!r}")
    return value


def _logprob(value: object) -> float:
    if value is None:
        return math.nan
    if not is_real(value):
        raise TypeError(f"expected a log-probability, got {value!r}")
    if not -sys.float_info.max <= value <= _ROUNDING:  # an integer may be beyond what float64 holds
        raise ValueError(f"expected a log-probability of at most 0, got {value!r}")
    return min(float(value), 0.0)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"expected text, got a surrogate, which is no character, in {value!r}")
    return value


def _max_bytes(prompt: str, max_tokens: int) -> int:
    return _BYTES + _BYTES_A_TOKEN * max_tokens + _BYTES_A_CHARACTER * len(prompt)


def _extended(request: CompletionRequest) -> dict[str, Any]:
    """Returns fields of vLLM, SGLang and llama.cpp.

    The filters are always sent, because a server may have other defaults.
    """
    return {
        "top_k": request.top_k or -1,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "repeat_penalty": request.repetition_penalty,  # llama.cpp's name
        "include_stop_str_in_output": True,  # vLLM
        "no_stop_trim": True,  # SGLang
        "return_token_ids": True,  # vLLM
    }


def _stop_end(text: str, stops: Sequence[str]) -> int | None:
    """Returns where the first complete stop string ends."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    return min(ends, default=None)
