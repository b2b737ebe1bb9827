"""The tensors of a GGUF file, read on demand and not mapped.

If a mapped file is truncated, the process dies. Here it is an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...errors import ModelLoadError
from .header import Header
from .places import Place, block_of
from .text import shown

Array = np.ndarray[Any, Any]


class FileTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        kind: the name of its `GGMLQuantizationType`.
        shape: of its numbers, those of a row last.
    """

    header: Header
    place: Place
    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.place.name

    def blocks(self) -> Array:
        """Returns uint8 [..., bytes of a row]. Raises ModelLoadError if the file was truncated."""
        numbers, size = block_of(self.place.kind)
        *outer, row = self.shape or (1,)
        made = np.empty((*outer, row // numbers * size), np.uint8)
        with self.header.file.open("rb", buffering=0) as stream:
            stream.seek(self.header.begin + self.place.offset)
            room = made.reshape(-1).data
            while len(room):
                if not (count := stream.readinto(room)):
                    raise ModelLoadError(
                        f"model: {self.header.file} ends within {shown(self.name)}: it was cut short "
                        "while it was read; load it again when it is complete"
                    )
                room = room[count:]
        return made

    def numbers(self) -> Array:
        """Returns dequantised numbers of the tensor's shape."""
        from gguf import GGMLQuantizationType, dequantize

        made: Array = dequantize(self.blocks(), GGMLQuantizationType(self.place.kind))
        return made


def file_tensors(header: Header) -> list[FileTensor]:
    """Returns all tensors, in the header's order."""
    from gguf import GGMLQuantizationType

    return [
        FileTensor(header, place, GGMLQuantizationType(place.kind).name, tuple(reversed(place.dimensions)))
        for place in header.places.values()
    ]
