"""Turns token ids into text, token by token: text that was returned never changes when more tokens follow.

A character may span several tokens, so a window of tokens does not decode on its own. A fast tokenizer of
transformers maps each token to a run of bytes, which depends on one thing only: whether text precedes it.
These bytes are looked up here and decoded as UTF-8 in one stream.

Tokenizers written in Python, and fast ones whose decoder looks at neighbours, have no such bytes. For them,
earlier tokens are decoded again with the new ones: all of them, until a short tail proves to suffice.
"""

from __future__ import annotations

import json
import re
from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from tts_kernels.checks import a_type

_UNKNOWN = "\ufffd"  # what decoders give for bytes that are no character, or not yet one
_BEFORE = "a"  # text before a token while it is decoded
_KEPT = 32  # earlier tokens that are decoded with new ones if tokens do not map to bytes
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")

# Sequences of decoders that decode each token independently. After a B, F or U, only single characters may be
# replaced, and only one space may be stripped at the start of the text.
_LETTERS = {
    "ByteLevel": "B",
    "ByteFallback": "F",
    "Fuse": "U",
    "Metaspace": "M",
    "Replace": "R",
    "Strip": "S",
    "WordPiece": "W",
}
_LOCAL = re.compile("BR*|WU?|M?R*F?U?R*|R*F?UR*S")


class TextStream(Protocol):
    """The text of a sequence of tokens that grows at its end."""

    def add(self, tokens: Sequence[int]) -> str:
        """Returns the characters that `tokens` complete.

        Bytes that are no UTF-8 become U+FFFD, one for each maximal prefix of a character. Bytes that may
        still become a character wait for the next call.
        """


def text_stream(tokenizer: Any, context: Sequence[int], *, special: bool) -> TextStream:
    """Returns a stream that continues after the tokens `context`.

    Ids that the tokenizer does not know have no text, and neither has -1, which stands for an embedding.
    Spaces are not cleaned up (`clean_up_tokenization_spaces`), because that would change text already
    returned.

    Args:
        special: whether special tokens have text.
    """
    tables = _tables(tokenizer)
    if tables is None:
        return _WholeStream(tokenizer, context, special)
    return _ByteStream(tables[special], context)


def continuation(tokenizer: Any, tokens: Sequence[int], start: int, *, special: bool = False) -> str:
    """Returns the text that `tokens[start:]` add after `tokens[:start]`: the characters that end in them.

    The texts of the pieces of a sequence join to the text of the whole, wherever it is cut. An incomplete
    character at the end is left out; the text of the tokens that complete it begins with it. If later tokens
    do not complete it, it becomes U+FFFD.

    Args:
        special: whether special tokens have text.
    """
    return text_stream(tokenizer, tokens[:start], special=special).add(tokens[start:])


def token_bytes(tokenizer: Any, size: int) -> list[bytes]:
    """Returns the bytes of each token id below `size` when text precedes it; special tokens have none.

    Raises:
        TypeError: the tokens do not map to bytes, as in a tokenizer written in Python.
    """
    tables = _tables(tokenizer)
    if tables is None:
        raise TypeError(
            f"tokenizer: got {a_type(tokenizer)}, expected a fast one of transformers whose tokens "
            "decode each on its own"
        )
    pieces = [tables[False][token] for token in range(size)]
    for old, new in tables[False].replaced:
        pieces = [piece.replace(old.encode(), new.encode()) for piece in pieces]
    return pieces


class _ByteStream:
    def __init__(self, table: _TokenBytes, context: Sequence[int]) -> None:
        self._table = table
        self._leading = True
        tail = b""
        for token in reversed(context):
            piece = table[token]
            tail = piece + tail
            self._leading = self._leading and not piece and not table.first(token)
            if len(tail) >= 3:  # an incomplete character has no more bytes
                break
        self._pending = tail[utf_8_decode(tail, "replace", False)[1] :]

    def add(self, tokens: Sequence[int]) -> str:
        table = self._table
        pieces = [table[token] for token in tokens]
        if self._leading:
            for i, token in enumerate(tokens):
                if not table.is_silent(token):
                    pieces[i] = table.first(token)
                    self._leading = False
                    break
        data = self._pending + b"".join(pieces)
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        for old, new in table.replaced:
            text = text.replace(old, new)
        return text


class _TokenBytes(dict[int, bytes]):
    """The bytes of each token when text precedes it; empty for a token without text. Filled on demand.

    replaced: characters that are replaced in the text, whatever tokens they come from.
    """

    def __init__(self, backend: Any, stages: Sequence[dict[str, Any]], special: bool) -> None:
        super().__init__()
        self._backend = backend
        self._special = special
        self._decode = backend.decoder.decode
        kinds = [stage["type"] for stage in stages]
        self._alphabet = _byte_alphabet() if "ByteLevel" in kinds else {}
        self._byte_fallback = "ByteFallback" in kinds
        self.replaced = _replaced(stages)

    def __missing__(self, token: int) -> bytes:
        content = self._content(token)
        if content is None:
            return b""  # not cached: a token may be added
        piece = self[token] = self._bytes(content, self._decode([_BEFORE, content])[len(_BEFORE) :])
        return piece

    def first(self, token: int) -> bytes:
        """Returns the bytes of a token when no text precedes it."""
        content = self._content(token)
        return b"" if content is None else self._bytes(content, self._decode([content]))

    def is_silent(self, token: int) -> bool:
        return not self[token] and not self.first(token)

    def _content(self, token: int) -> str | None:
        """Returns the token as in the vocabulary; None for a token without text."""
        content: str | None = None if token < 0 else self._backend.id_to_token(token)
        if content is None or self._special:
            return content
        alone, without = (self._backend.decode([token], skip_special_tokens=skip) for skip in (False, True))
        return content if alone == without else None

    def _bytes(self, content: str, text: str) -> bytes:
        """Returns the bytes of a token. text: what the decoder makes of the content."""
        if _UNKNOWN in text:
            if self._byte_fallback and (byte := _BYTE.fullmatch(content)):
                return bytes([int(byte[1], 16)])
            if self._alphabet and all(char in self._alphabet for char in content):
                return bytes(self._alphabet[char] for char in content)
        return text.encode()


class _WholeStream:
    def __init__(self, tokenizer: Any, context: Sequence[int], special: bool) -> None:
        self._tokenizer = tokenizer
        self._options = {"skip_special_tokens": not special}
        if getattr(tokenizer, "clean_up_tokenization_spaces", False):
            self._options["clean_up_tokenization_spaces"] = False
        self._tokens: list[int] = []
        self._limit = 2 * _KEPT  # tokens, before the first ones may be dropped
        self._length = 0  # characters already returned
        self.add(context)

    def add(self, tokens: Sequence[int]) -> str:
        new = [token for token in tokens if token >= 0]
        try:
            text = self._decode(self._tokens + new)
        except Exception:  # tokenizers differ in what they raise for an unknown id
            new = [token for token in new if self._is_known(token)]
            text = self._decode(self._tokens + new)
        if len(new) > 1 and _UNKNOWN in text[self._length :]:
            # Some decoders take characters back while one near them is incomplete. A run of tokens must give
            # the same text as its tokens one by one.
            middle = len(new) // 2
            return self.add(new[:middle]) + self.add(new[middle:])
        self._tokens += new
        whole = text.rstrip(_UNKNOWN)
        added = whole[self._length :]
        self._length = max(self._length, len(whole))
        if len(self._tokens) >= self._limit and len(text) == self._length:  # no character is incomplete
            self._forget(text)
            self._limit = len(self._tokens) + _KEPT
        return added

    def _forget(self, text: str) -> None:
        """Drops all but the last tokens if the end of the text comes out the same without the others."""
        last = self._tokens[-_KEPT:]
        begin, short = self._decode(self._tokens[: -_KEPT // 2]), self._decode(last)
        short_begin = self._decode(last[: -_KEPT // 2])
        joined = text.startswith(begin) and short.startswith(short_begin) and short_begin.strip(_UNKNOWN)
        if joined and text[len(begin) :] == short[len(short_begin) :]:
            self._tokens, self._length = last, len(short)

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), **self._options) if tokens else ""
        return text

    def _is_known(self, token: int) -> bool:
        try:
            self._decode([token])
        except Exception:
            return False
        return True


_Tables = tuple[_TokenBytes, _TokenBytes] | None
_TABLES: WeakKeyDictionary[Any, _Tables] = WeakKeyDictionary()


def _tables(tokenizer: Any) -> _Tables:
    """Returns the tables without and with the text of special tokens; None if tokens do not map to bytes."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    from transformers import PreTrainedTokenizerFast  # text engines do without it

    own = (getattr(type(tokenizer), name, None) for name in ("decode", "_decode"))
    if list(own) != [PreTrainedTokenizerFast.decode, PreTrainedTokenizerFast._decode]:
        return None
    if tokenizer not in _TABLES:
        backend = tokenizer.backend_tokenizer
        stages = _stages(backend.decoder)
        _TABLES[tokenizer] = (
            None
            if stages is None
            else (_TokenBytes(backend, stages, special=False), _TokenBytes(backend, stages, special=True))
        )
    return _TABLES[tokenizer]


def _stages(decoder: Any) -> list[dict[str, Any]] | None:
    """Returns the decoders as data, in the order in which they run; None if tokens may affect each other."""
    try:
        stages = _flat(json.loads(decoder.__getstate__()))
    except Exception:  # no decoder, or one written in Python, which has no state and may raise anything
        return None
    letters = "".join(_LETTERS.get(stage["type"], "-") for stage in stages)
    stripped = [
        (stage["content"], stage["start"], stage["stop"]) for stage in stages if stage["type"] == "Strip"
    ]
    replaced = _replaced(stages)
    if (
        not _LOCAL.fullmatch(letters)
        or stripped not in ([], [(" ", 1, 0)])
        or any(len(old) != 1 or any(old in new for _, new in replaced) for old, _ in replaced)
        or decoder.decode([_BEFORE]) != _BEFORE
    ):
        return None
    return stages


def _flat(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [stage for inner in state["decoders"] for stage in _flat(inner)]


def _replaced(stages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns what is replaced in a text of several tokens, and by what; "" is a regular expression."""
    found, joined = [], False
    for stage in stages:
        joined = joined or stage["type"] in ("ByteLevel", "ByteFallback", "Fuse")
        if joined and stage["type"] == "Replace":
            found.append((stage["pattern"].get("String", ""), stage["content"]))
    return found


def _byte_alphabet() -> dict[str, int]:
    """Maps characters to the bytes they represent in byte-level vocabularies (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
