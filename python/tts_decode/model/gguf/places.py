"""Checks where a GGUF file's tensors are: each lies wholly inside the file, and no two overlap."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from .text import shown


class Place(NamedTuple):
    """A header's description of a tensor.

    Attributes:
        name: as in the file.
        dimensions: the length of a row first.
        kind: number of its `GGMLQuantizationType`.
        offset: in bytes, from the beginning of the weights.
    """

    name: str
    dimensions: tuple[int, ...]
    kind: int
    offset: int


def first_unknown(places: Sequence[Place]) -> Place | None:
    """Returns the first tensor of a kind that the package gguf does not know."""
    sizes = _sizes()
    return next((place for place in places if place.kind not in sizes), None)


def why_misplaced(places: Sequence[Place], room: int, alignment: int) -> str | None:
    """Returns the first fault of the places, or None. All kinds are known.

    room: bytes of the file from the beginning of the weights.
    """
    sizes, end, before = _sizes(), 0, ""
    for place in sorted(places, key=lambda place: place.offset):
        name, offset, row = shown(place.name), place.offset, place.dimensions[:1] or (1,)
        numbers, size = sizes[place.kind]
        if row[0] % numbers:
            return f"{name} has rows of {row[0]} numbers, expected a multiple of {numbers}, its kind's block"
        if offset % alignment:
            return f"{name} begins at byte {offset} of the weights, expected a multiple of {alignment}"
        if offset < end:
            return f"{name} begins at byte {offset} of the weights, where {before} lies"
        end, before = offset + prod(place.dimensions) // numbers * size, name
        if end > room:
            return f"{name} ends at byte {end} of the weights, of which the file has {max(room, 0)}"
    return None


def block_of(kind: int) -> tuple[int, int]:
    """Returns how many numbers and bytes a block of a known kind has."""
    return _sizes()[kind]


def _sizes() -> dict[int, tuple[int, int]]:
    """Returns how many numbers and bytes a block has, by the number of its kind."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
