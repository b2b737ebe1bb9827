"""Writes a job's pieces as answers in OpenAI's format: whole, or as the events of a stream.

What all chunks share is written once. JSON is joined from parts that are JSON already, so that a chunk of a
stream costs little more than its token.
"""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .job import Piece, Token, Usage

DONE = b"data: [DONE]\n\n"
_BLOCK = 256  # tokens
_LOWEST = -9999.0  # for a log-probability of -inf, which JSON lacks

to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Form(ABC):
    """The format of one answer.

    Args:
        model: its name. logprobs: whether the caller asked for log-probabilities. token_ids: whether for ids.
    """

    kind = chunk_kind = prefix = ""

    def __init__(self, model: str, *, logprobs: bool = False, token_ids: bool = False) -> None:
        head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._head = to_json(head)[:-1]
        self._chunk = f'data: {self._head},"object":{to_json(self.chunk_kind)},"choices":['
        self._logprobs, self._token_ids = logprobs, token_ids

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        """Returns the body of an answer."""
        pieces = sorted(merged(pieces), key=lambda piece: piece.choice)
        choices = ",".join([self.choice(piece) for piece in pieces])
        more = self._beside(pieces[0]) + "".join([_more(piece.more) for piece in pieces])
        end = f'"usage":{to_json(usage.to_dict())}{more}}}'
        return f'{self._head},"object":{to_json(self.kind)},"choices":[{choices}],{end}'.encode()

    def chunks(self, pieces: Sequence[Piece]) -> bytes:
        """Returns events of a stream, one for each choice that continues."""
        begin = self._chunk
        return "".join(
            [
                f"{begin}{self.delta(piece)}]{self._beside(piece)}{_more(piece.more)}}}\n\n"
                for piece in merged(pieces)
            ]
        ).encode()

    def usage_chunk(self, usage: Usage) -> bytes:
        return f'{self._chunk}],"usage":{to_json(usage.to_dict())}}}\n\n'.encode()

    @abstractmethod
    def choice(self, piece: Piece) -> str:
        """Returns a choice of a whole answer, as JSON."""

    @abstractmethod
    def delta(self, piece: Piece) -> str:
        """Returns what a piece adds to its choice, as JSON."""

    def _beside(self, piece: Piece) -> str:
        """Returns the fields that a chunk or an answer takes from its first piece besides the choices."""
        return ""

    def _ends(self, piece: Piece) -> str:
        ids = ""
        if self._token_ids:
            ids = f',"token_ids":{to_json([token.id for token in piece.tokens])}'
        if piece.finish_reason is None:
            return f'"finish_reason":null,"stop_reason":null{ids}}}'
        stop = to_json(piece.stop_reason)
        return f'"finish_reason":"{piece.finish_reason}","stop_reason":{stop}{ids}}}'


class CompletionForm(Form):
    """The format of /v1/completions."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, **options: bool) -> None:
        super().__init__(model, **options)
        self._offsets: dict[int, int] = {}  # characters of each choice already sent
        self._echo: tuple[Sequence[Token], _Columns] = (), _Columns((), 0)  # the last one written

    def choice(self, piece: Piece) -> str:
        logprobs = self._listed(piece) if self._logprobs else "null"
        text = to_json(piece.text)
        prompt = f'"prompt_token_ids":{_ids(piece)},' if self._token_ids else ""
        return f'{{"index":{piece.choice},"text":{text},"logprobs":{logprobs},{prompt}{self._ends(piece)}'

    delta = choice

    def _listed(self, piece: Piece) -> str:
        columns = _Columns(piece.tokens, self._offsets.get(piece.choice, 0))
        if piece.echoed:
            if piece.echoed is not self._echo[0]:
                self._echo = piece.echoed, _Columns(piece.echoed, 0)
            columns = self._echo[1].before(_Columns(piece.tokens, self._echo[1].end))
        self._offsets[piece.choice] = columns.end
        return columns.to_json()


class ChatForm(Form):
    """The format of /v1/chat/completions.

    Args:
        token_bytes: of each token by its id; b"" if unknown.
    """

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, model: str, token_bytes: Sequence[bytes] = (), **options: bool) -> None:
        super().__init__(model, **options)
        self._bytes = token_bytes
        self._begun: set[int] = set()  # choices whose role was sent

    def choice(self, piece: Piece) -> str:
        message = f'{{"role":"assistant","content":{to_json(piece.text)},"refusal":null}}'
        logprobs, ends = self._listed(piece), self._ends(piece)
        return f'{{"index":{piece.choice},"message":{message},"logprobs":{logprobs},{ends}'

    def delta(self, piece: Piece) -> str:
        delta = f'"content":{to_json(piece.text)}' if piece.text or piece.finish_reason is None else ""
        if piece.choice not in self._begun:
            self._begun.add(piece.choice)
            delta = f'"role":"assistant","content":{to_json(piece.text)}'
        logprobs, ends = self._listed(piece), self._ends(piece)
        return f'{{"index":{piece.choice},"delta":{{{delta}}},"logprobs":{logprobs},{ends}'

    def _beside(self, piece: Piece) -> str:
        return f',"prompt_token_ids":{_ids(piece)}' if piece.prompt_ids else ""

    def _listed(self, piece: Piece) -> str:
        if not self._logprobs:
            return "null"
        content = _items([self._entry(token) for token in piece.tokens])
        return f'{{"content":[{content}],"refusal":null}}'

    def _entry(self, token: Token) -> dict[str, Any]:
        top = [self._named(id, text, value) for id, text, value in token.top]
        return self._named(token.id, token.text, token.logprob) | {"top_logprobs": top}

    def _named(self, id: int, text: str, logprob: float | None) -> dict[str, Any]:
        own = self._bytes[id]
        return {"token": text, "logprob": _number(logprob), "bytes": list(own) if own else None}


class _Columns:
    """Tokens as the lists that completions have of them.

    begin: characters of the text before them. end: including them. lists: each as JSON without its brackets.
    """

    def __init__(self, tokens: Sequence[Token], begin: int) -> None:
        offsets = []
        for token in tokens:
            offsets.append(begin)
            begin += len(token.text)
        self.end = begin
        columns: dict[str, list[Any]] = {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [_number(token.logprob) for token in tokens],
            "top_logprobs": [_alternatives(token) for token in tokens],
            "text_offset": offsets,
        }
        self.lists = {name: _items(column) for name, column in columns.items()}

    def before(self, other: _Columns) -> _Columns:
        """Returns these tokens followed by others."""
        joined = _Columns((), other.end)
        for name, column in self.lists.items():
            joined.lists[name] = ",".join(filter(None, (column, other.lists[name])))
        return joined

    def to_json(self) -> str:
        return "{" + ",".join([f'"{name}":[{column}]' for name, column in self.lists.items()]) + "}"


def _ids(piece: Piece) -> str:
    """Returns the prompt's ids; null after a choice's first piece."""
    return f"[{_items(piece.prompt_ids)}]" if piece.prompt_ids else "null"


def _items(column: Sequence[Any]) -> str:
    """Returns a column as JSON without brackets, written in blocks because writing blocks other threads."""
    blocks = (column[at : at + _BLOCK] for at in range(0, len(column), _BLOCK))
    return ",".join([to_json(block)[1:-1] for block in blocks])


def event(data: Mapping[str, Any]) -> bytes:
    """Returns one event of a stream."""
    return f"data: {to_json(data)}\n\n".encode()


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Merges the pieces of each choice into one, in the order in which the choices appear."""
    found: dict[int, Piece] = {}
    for piece in pieces:
        before = found.get(piece.choice)
        if before is not None:
            piece = replace(
                before,  # its prompt stays
                text=before.text + piece.text,
                tokens=[*before.tokens, *piece.tokens],
                finish_reason=piece.finish_reason,
                stop_reason=piece.stop_reason,
                more={**before.more, **piece.more},
            )
        found[piece.choice] = piece
    return list(found.values())


def _more(fields: Mapping[str, Any]) -> str:
    """Returns further fields to append to others."""
    return "," + to_json(fields)[1:-1] if fields else ""


def _alternatives(token: Token) -> dict[str, float] | None:
    """Returns the alternatives of a token, always including itself, as OpenAI does.

    None for a prompt's first token.
    """
    if token.logprob is None:
        return None
    found = {text: _finite(value) for _, text, value in token.top}
    return found | {token.text: _finite(token.logprob)}


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else _finite(logprob)


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST
