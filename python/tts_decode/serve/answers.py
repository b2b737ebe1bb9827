"""Answers in OpenAI's form, made of a job's pieces: whole ones, and the chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .job import Piece, Token, Usage

_LOWEST = -9999.0  # for a log-probability of -inf, which JSON does not have


class Form:
    """How one answer is written.

    Args:
        model: its name. logprobs: whether the caller asked for log-probabilities. token_ids: for ids.
    """

    kind = chunk_kind = prefix = ""

    def __init__(self, model: str, *, logprobs: bool = False, token_ids: bool = False) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._logprobs, self._token_ids = logprobs, token_ids

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        whole = sorted(merged(pieces), key=lambda piece: piece.choice)
        choices = [self._choice(piece) for piece in whole]
        answer = self._head | {"object": self.kind, "choices": choices, "usage": usage.to_dict()}
        for piece in whole:
            answer |= piece.more
        return answer

    def chunk(self, piece: Piece) -> dict[str, Any]:
        return self._head | {"object": self.chunk_kind, "choices": [self._delta(piece)], **piece.more}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return self._head | {"object": self.chunk_kind, "choices": [], "usage": usage.to_dict()}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _ends(self, piece: Piece) -> dict[str, Any]:
        fields: dict[str, Any] = {"finish_reason": piece.finish_reason, "stop_reason": piece.stop_reason}
        if self._token_ids:
            fields["token_ids"] = [token.id for token in piece.tokens]
        return fields


class CompletionForm(Form):
    """Of /v1/completions."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, **options: bool) -> None:
        super().__init__(model, **options)
        self._offsets: dict[int, int] = {}  # characters of each choice that are out

    def _choice(self, piece: Piece) -> dict[str, Any]:
        return {"index": piece.choice, "text": piece.text, "logprobs": self._told(piece), **self._ends(piece)}

    _delta = _choice

    def _told(self, piece: Piece) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        offset = self._offsets.get(piece.choice, 0)
        offsets = []
        for token in piece.tokens:
            offsets.append(offset)
            offset += len(token.text)
        self._offsets[piece.choice] = offset
        return {
            "tokens": [token.text for token in piece.tokens],
            "token_logprobs": [_number(token.logprob) for token in piece.tokens],
            "top_logprobs": [_alternatives(token) for token in piece.tokens],
            "text_offset": offsets,
        }


class ChatForm(Form):
    """Of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, model: str, **options: bool) -> None:
        super().__init__(model, **options)
        self._begun: set[int] = set()  # choices that said their role

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": piece.choice, "message": message, "logprobs": self._told(piece), **self._ends(piece)}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text or piece.finish_reason is None else {}
        if piece.choice not in self._begun:
            self._begun.add(piece.choice)
            delta = {"role": "assistant", "content": piece.text}
        return {"index": piece.choice, "delta": delta, "logprobs": self._told(piece), **self._ends(piece)}

    def _told(self, piece: Piece) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            _entry(token.text, token.logprob)
            | {"top_logprobs": [_entry(text, value) for text, value in token.top]}
            for token in piece.tokens
        ]
        return {"content": content, "refusal": None}


def event(data: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces of each choice as one, in the order in which the choices come up."""
    found: dict[int, Piece] = {}
    for piece in pieces:
        before = found.get(piece.choice)
        if before is not None:
            text, tokens = before.text + piece.text, [*before.tokens, *piece.tokens]
            more = {**before.more, **piece.more}
            piece = replace(piece, text=text, tokens=tokens, more=more)
        found[piece.choice] = piece
    return list(found.values())


def _alternatives(token: Token) -> dict[str, float] | None:
    """The token itself is always among them, as at OpenAI. None: a prompt's first token."""
    if token.logprob is None:
        return None
    found = {text: _lowest(value) for text, value in token.top}
    return found | {token.text: _lowest(token.logprob)}


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": _number(logprob), "bytes": list(text.encode())}


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else _lowest(logprob)


def _lowest(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST
