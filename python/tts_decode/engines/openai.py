"""Completions from a server that speaks OpenAI's API, over the standard library's HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import operator
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tts_decode.engines.completion import Completion, CompletionRequest, FinishReason
from tts_decode.errors import EngineError, UnsupportedByEngine

_LONGEST_WAIT = 60.0  # seconds that a server's Retry-After is heeded for at most
_EXCERPT = 200  # characters of a server's answer in an error message


class OpenAICompletions:
    """A `complete` for `TextDecoder`: POST base_url/completions of vLLM, SGLang, llama.cpp's server, others.

    Args:
        base_url: what comes before "/completions", as "http://localhost:8000/v1".
        model: the model's name at the server.
        api_key: sent as a bearer token.
        timeout: seconds without a byte from the server after which a call fails.
        retries: further tries after a status of 429 or 5xx, or a broken connection; waits are `backoff`
            seconds, doubled each time, or what the server says in Retry-After.
        max_connections: calls at a time; each has a thread while it waits.
        extensions: send fields beyond OpenAI's own API: those that switch filters off which a server applies
            on its own, ask for token ids, and keep stop strings. Servers ignore what they do not know;
            OpenAI's own refuses it.
        local_stops: look for stop strings here instead of at the server: for servers that drop the string
            and do not say that it was one. What they generate beyond it is paid and dropped.

    A stop string that the server dropped is put back. Log-probabilities are as the server counts them; an end
    token for which it tells none counts as 0.

    Raises (from the calls):
        EngineError: the server cannot be reached, refuses, or answers what is no completion; the message
            names url, status and the beginning of the answer.
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
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url={base_url!r}; expected something like http://localhost:8000/v1")
        for name, value, least in (("retries", retries, 0), ("max_connections", max_connections, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}; expected an integer of at least {least}")
        for name, seconds in (("timeout", timeout), ("backoff", backoff)):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name}={seconds}; expected a positive number of seconds")
        self.url = base_url.rstrip("/") + "/completions"
        self.model = model
        self._address = urlsplit(self.url)
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._extensions, self._local_stops = extensions, local_stops
        self._threads = ThreadPoolExecutor(max_connections, "completions")

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
        if self._extensions:
            body |= _extended(request)
        elif (request.top_k, request.min_p, request.repetition_penalty) != (0, 0.0, 1.0):
            raise UnsupportedByEngine(
                "OpenAI's API has no top_k, min_p, repetition_penalty: leave them at their defaults, or let "
                "OpenAICompletions use extensions"
            )
        answer = await self._post(body)
        choice = self._choice(answer)
        output = self._output(choice, answer.get("usage"))
        if self._local_stops and (end := _stop_end(output.text, request.stop)):
            return output.cut(end).completion("stop_string")
        return self._finished(output, choice, () if self._local_stops else request.stop)

    async def score(self, prompt: str, continuations: Sequence[str]) -> list[list[float]]:
        """For each continuation the log-probability of each of its tokens after `prompt`, nats: `score` of a
        `TextDecoder` where the server can echo a prompt with log-probabilities. A token that begins in the
        prompt and ends in the continuation counts in full."""
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
        answer = await self._post(body)
        output = self._output(self._choice(answer), None)
        try:
            echoed = len(output.pieces) - _completion_tokens(answer.get("usage"), 1)
        except (AttributeError, TypeError, ValueError) as error:
            raise self._error("usage of an unknown form", answer) from error
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
            raise self._error("no completion in the answer", answer)
        return choice

    def _output(self, choice: dict[str, Any], usage: object) -> _Output:
        try:
            return _read_output(choice, usage)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._error("logprobs, token_ids or usage of an unknown form", choice) from error

    def _finished(self, output: _Output, choice: dict[str, Any], stops: Sequence[str]) -> Completion:
        """With the finish reason, and with the stop string that ended it."""
        reason = choice.get("finish_reason")
        if reason == "length":
            return output.completion("length")
        if reason != "stop":
            raise self._error(f"finish_reason {reason!r}", choice)
        told = "stop_reason" in choice or "matched_stop" in choice
        stop = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's and SGLang's names
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

    # -- HTTP

    async def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            wait = self._backoff * 2**attempt
            try:
                status, after, text = await self._exchange(data)
            except TimeoutError:
                raise EngineError(f"POST {self.url}: no answer within {self._timeout:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                if last:
                    what = f"{type(error).__name__}: {error}"
                    raise EngineError(f"POST {self.url}: {what} (tried {attempt + 1} times)") from error
            else:
                if status == 200:
                    return self._parsed(text)
                if last or not (status == 429 or status >= 500):
                    times = f" (tried {attempt + 1} times)" if attempt else ""
                    raise self._error(f"status {status}{times}", text)
                wait = wait if after is None else min(after, _LONGEST_WAIT)
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _exchange(self, data: bytes) -> tuple[int, float | None, str]:
        """One request: status, seconds of Retry-After, body. Cancelled, it closes the connection, which tells
        the server to stop."""
        secure = self._address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(str(self._address.hostname), self._address.port, timeout=self._timeout)

        def exchange() -> tuple[int, float | None, str]:
            try:
                connection.request("POST", self._address.path, data, self._headers)
                response = connection.getresponse()
                text = response.read().decode(errors="replace")
                return response.status, _seconds(response.getheader("Retry-After")), text
            finally:
                connection.close()

        call = asyncio.get_running_loop().run_in_executor(self._threads, exchange)
        try:
            return await call
        except asyncio.CancelledError:
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
            raise

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._error("the answer is no JSON object", text)
        return answer

    def _error(self, what: str, answer: object) -> EngineError:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return EngineError(f"POST {self.url}: {what}: {text[:_EXCERPT]}")


@dataclass(frozen=True)
class _Output:
    """What was generated. The tuples have one entry a token, or none; `pieces` add up to more than the text
    where the server dropped an end or a stop string from it."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    pieces: tuple[str, ...]

    def with_stop(self, stop: str) -> _Output:
        return _Output(self.text + stop, self.tokens, self.logprobs, self.pieces)

    def cut(self, end: int) -> _Output:
        """Up to the token that holds character `end` - 1. Where the texts of tokens are not known, all that
        were generated count."""
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
        """The pieces, clipped to the text; none where they spell something else, as tokens do that hold a
        part of a character."""
        if not "".join(self.pieces).startswith(self.text):
            return ()
        left = len(self.text)
        texts = []
        for piece in self.pieces:
            texts.append(piece[:left])
            left -= len(texts[-1])
        return tuple(texts)


def _read_output(choice: dict[str, Any], usage: Any) -> _Output:
    """Tokens as far as the server tells them: ids, or their texts, or their number. Raises what Python does
    where the fields are of other kinds."""
    told = choice.get("logprobs") or {}
    if "content" in told:  # as in OpenAI's chat API, one object a token
        entries = told["content"] or []
        pieces, logprobs = [entry["token"] for entry in entries], [entry["logprob"] for entry in entries]
    else:
        pieces, logprobs = told.get("tokens") or [], told.get("token_logprobs") or []
    tokens = choice.get("token_ids") or [-1] * (len(pieces) or _completion_tokens(usage, 0))
    known = len(pieces) == len(logprobs) == len(tokens)
    return _Output(
        choice["text"],
        tuple(map(operator.index, tokens)),
        tuple(math.nan if value is None else float(value) for value in logprobs) if known else (),
        tuple(map(_text, pieces)) if known else (),
    )


def _completion_tokens(usage: Any, unknown: int) -> int:
    return int((usage or {}).get("completion_tokens", unknown))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r:.50}")
    return value


def _extended(request: CompletionRequest) -> dict[str, Any]:
    """Fields of vLLM, SGLang and llama.cpp. The filters are always sent: a server may have other defaults."""
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
    """Where the first complete stop string ends."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    return min(ends, default=None)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None for none, or a date."""
    return float(header) if header is not None and header.isdecimal() else None
