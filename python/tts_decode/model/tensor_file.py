"""Files of tensors in the safetensors format: written one tensor at a time, and mapped instead of read.

Processes that map a file share its memory. Tensors whose sizes are multiples of 64 bytes come first, aligned
to 64 bytes: panels of quantised weights are read in vectors of that size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_LINE = 64
_NAMES = {torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class Part(NamedTuple):
    """A tensor to write: its name in the file, and a function that makes it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(file: Path, parts: Sequence[Part]) -> None:
    """Writes the tensors durably before it returns. At most one of them is in memory."""
    ordered = sorted(parts, key=lambda part: (part.size % _LINE > 0, -part.dtype.itemsize))
    header: dict[str, object] = {}
    end = 0
    for part in ordered:
        places = [end, end + part.size]
        header[part.name] = {"dtype": _NAMES[part.dtype], "shape": list(part.shape), "data_offsets": places}
        end += part.size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _LINE)
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for part in ordered:
            made = part.make()
            if made.dtype != part.dtype or made.shape != part.shape:
                raise ValueError(f"{part.name}: made {made.dtype} {list(made.shape)}, expected {part}")
            stream.write(made.contiguous().flatten().view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def map_tensors(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by name; writing to them does not reach the file.

    Raises ValueError, KeyError, TypeError or RuntimeError if it is no such file, or truncated.
    """
    with file.open("rb") as stream:
        length, size = int.from_bytes(stream.read(8), "little"), os.fstat(stream.fileno()).st_size
        header = json.loads(stream.read(min(length, size)))
    begin, mapped = 8 + length, torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        values = mapped[begin + first : begin + last]
        tensors[name] = values.view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    return tensors
