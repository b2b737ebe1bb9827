"""Parses the keys and tensor names of a GGUF file, everything before the weights, into Python values.

Nothing in a file is trusted: each length is compared with the file's size before that much is read. Nothing
is mapped: if a mapped file is truncated, the process dies.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tts_kernels import TTSError
from tts_kernels.checks import is_integer

from ...errors import ModelLoadError
from .places import Place, first_unknown, why_misplaced
from .text import shown

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_TEXT, _ARRAY = 8, 9  # kinds of values without a size of their own
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")
_MOST_DIMENSIONS = 4
_MOST_VALUES = 1 << 24  # of an array: a Python list takes many times its bytes
_MOST_BYTES = 1 << 30  # of all keys: with the largest vocabularies they take about 10 MB
_BLOCK = 1 << 20  # bytes per read


class Metadata(NamedTuple):
    """Everything before the weights.

    Attributes:
        values: by key; arrays are lists.
        places: of the tensors.
        begin: offset of the weights in the file, in bytes.
    """

    values: dict[str, Any]
    places: tuple[Place, ...]
    begin: int


def read_metadata(file: Path) -> Metadata:
    """Reads everything before the weights. Raises ModelLoadError if the file is not GGUF, or is damaged."""
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ModelLoadError(f"model: {file} does not begin with the bytes 'GGUF', so it is no GGUF file")
        size = os.fstat(stream.fileno()).st_size
        try:
            found = _read(_Cursor(stream, size))
            if (unknown := first_unknown(found.places)) is not None:
                raise ModelLoadError(
                    f"model: {file} holds {shown(unknown.name)} in numbers of the kind {unknown.kind}, which "
                    "the package gguf does not know here; take a file of another kind, or a newer gguf"
                )
            wrong = why_misplaced(found.places, size - found.begin, _alignment(found.values))
            if wrong is not None:
                raise _DamagedError(wrong)
        except _DamagedError as cause:
            raise ModelLoadError(f"model: {file} is damaged: {cause}; fetch it again") from None
    return found


class _DamagedError(TTSError):
    """The file is damaged; the message says where."""


class _Cursor:
    """A position in the file, advanced by each read. `what` names the current item, for errors.

    stream: positioned after the magic bytes. size: of the file.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.at, self.what = len(_MAGIC), "the header"
        self._stream, self._size, self._data = stream, size, bytearray(_MAGIC)

    def numbers(self, code: str, count: int) -> list[Any]:
        size = struct.calcsize(f"<{code}") * count
        self._require(self.at + size)
        values = struct.unpack_from(f"<{count}{code}", self._data, self.at)
        self.at += size
        return list(values)

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        return self.texts(1)[0]

    def texts(self, count: int) -> list[str]:
        self._require(self.at + count * _LENGTH.size)
        data, at, found = self._data, self.at, []
        try:
            for _ in range(count):
                begin = at + _LENGTH.size
                if begin > len(data):
                    self._require(begin)
                (length,) = _LENGTH.unpack_from(data, at)
                at = begin + length
                if at > len(data):
                    self._require(at)
                found.append(data[begin:at].decode())
        except UnicodeDecodeError as cause:
            raise _DamagedError(f"{self.what} holds text that is not UTF-8 ({cause.reason})") from None
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if count > _MOST_VALUES:
                raise _DamagedError(f"{self.what} has {count} values, expected at most {_MOST_VALUES}")
            if kind == _TEXT:
                return self.texts(count)
            return self.numbers(self._code(kind), count)
        return self.text() if kind == _TEXT else self.number(self._code(kind))

    def _code(self, kind: int) -> str:
        if kind not in _CODES:
            raise _DamagedError(f"{self.what} is of the kind {kind}, which no version of the format has")
        return _CODES[kind]

    def _require(self, end: int) -> None:
        """Reads until the first `end` bytes of the file are in memory."""
        if end > _MOST_BYTES and end <= self._size:
            raise _DamagedError(f"{self.what} ends at byte {end}, expected all keys in {_MOST_BYTES}")
        while end <= self._size and len(self._data) < end:
            if not (block := self._stream.read(max(_BLOCK, end - len(self._data)))):
                break  # truncated meanwhile
            self._data += block
        if len(self._data) < end:
            raise _DamagedError(f"{self.what} ends behind the end of the file")


def _read(cursor: _Cursor) -> Metadata:
    version, tensors, keys = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in _VERSIONS:
        raise _DamagedError(f"it is of version {version} of the format, expected 2 or 3")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        cursor.what = "the name of a key"
        key = cursor.text()
        cursor.what = shown(key)
        if key in metadata:
            raise _DamagedError(f"it holds a key twice: {cursor.what}")
        metadata[key] = cursor.value(cursor.number("I"))
    places = tuple(_place(cursor) for _ in range(tensors))
    return Metadata(metadata, places, cursor.at + -cursor.at % _alignment(metadata))


def _alignment(metadata: Mapping[str, Any]) -> int:
    """Returns the alignment, or 1 if the value is invalid: the check of that key refuses such a file."""
    alignment = metadata.get("general.alignment", 32)
    right = is_integer(alignment) and alignment > 0 and not alignment & (alignment - 1)
    return alignment if right else 1


def _place(cursor: _Cursor) -> Place:
    cursor.what = "the name of a tensor"
    name = cursor.text()
    cursor.what = f"the tensor {shown(name)}"
    dimensions = cursor.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise _DamagedError(f"{cursor.what} has {dimensions} dimensions, expected at most {_MOST_DIMENSIONS}")
    return Place(name, tuple(cursor.numbers("Q", dimensions)), cursor.number("I"), cursor.number("Q"))
