"""The keys and tensor names of a GGUF file, read without its weights.

Nothing in a file is trusted: each value's type and range are checked when it is requested.
"""

from __future__ import annotations

import math
import reprlib
from pathlib import Path

from tts_kernels.checks import is_integer, is_real

from ...errors import ModelLoadError
from .architectures import ARCHITECTURES, MIXTURES, ROUTER
from .keys import Architecture
from .metadata import Metadata, read_metadata
from .text import shown

_LARGEST = 2**31 - 1  # of the integers in llama.cpp


class Header:
    """A file's description of its model. Keys of the architecture are named without their namespace.

    Attributes:
        metadata: values by key.
        tensors: their names. places: their locations, by name. begin: offset of the weights, in bytes.
        name: of the architecture.
    """

    def __init__(self, file: Path, read: Metadata) -> None:
        self.file = file
        self.metadata = metadata = read.values
        self.places = {place.name: place for place in read.places}
        self.begin = read.begin
        self.tensors = frozenset(self.places)
        name = metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise self.refuse("general.architecture", f"one of {', '.join(sorted(ARCHITECTURES))}")
        self.name: str = name
        known = MIXTURES if ROUTER in self.tensors and name in MIXTURES else ARCHITECTURES
        self.architecture: Architecture = known[name]
        if len(self.tensors) < len(read.places):
            raise ModelLoadError(f"model: {file} is damaged: it holds a tensor twice; fetch it again")

    @classmethod
    def read(cls, file: Path) -> Header:
        """Reads the header. Raises ModelLoadError if it is damaged or its architecture unsupported."""
        return cls(file, read_metadata(file))

    def refuse(self, key: str, expected: str) -> ModelLoadError:
        """Returns the error for a key, given with its namespace, whose value is not supported."""
        got = reprlib.repr(self.metadata[key]) if key in self.metadata else "nothing"
        return ModelLoadError(
            f"model: {self.file} cannot be read right: {shown(key)}: got {got}, expected {expected}"
        )

    def path(self, key: str) -> str:
        return f"{self.name}.{key}"

    def __contains__(self, key: str) -> bool:
        return self.path(key) in self.metadata

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = _LARGEST) -> int:
        value = self.metadata.get(self.path(key), default)
        if not is_integer(value) or not low <= value <= high:
            raise self.refuse(self.path(key), f"an integer from {low} to {high}, the same in all layers")
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """Returns a finite number above 0, or with `zero` also 0."""
        value = self.metadata.get(self.path(key), default)
        if not is_real(value) or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise self.refuse(self.path(key), f"a finite number {'from' if zero else 'above'} 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(self.path(key), default)
        if not isinstance(value, bool):
            raise self.refuse(self.path(key), "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.metadata.get(self.path(key), default)
        if not isinstance(value, str):
            raise self.refuse(self.path(key), "a text")
        return value
