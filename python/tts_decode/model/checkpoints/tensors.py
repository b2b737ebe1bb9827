"""The tensors of a saved model: read one by one, with the required shape and dtype."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tts_kernels.checks import shown

from ...errors import ModelLoadError
from .experts import names_in_model
from .settings import INSTEAD

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_BAND = 1 << 18  # numbers read at a time
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class SavedTensors:
    """Tensors by name. They are read, not mapped: a mapped file takes memory besides what is made from it.

    Their names are those of the model (`names_in_model`), even if the files use others.

    Attributes:
        folder: of the model.
        left: names of those that nobody has taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._names: dict[str, str] = {}  # names in the files
        self._places: dict[str, tuple[Path, int, int]] = {}  # begin and end of each one's bytes
        for file in _files_of(folder):
            try:
                opened: Any = safe_open(file, framework="pt", device="cpu")
            except (OSError, SafetensorError) as cause:
                raise self.damaged(f"cannot read {file.name}: {cause}") from cause
            places = _places(file)
            for own, name in names_in_model(places).items():
                if name in self._files:
                    raise self.damaged(f"{own} lies in two files")
                self._files[name], self._names[name], self._places[name] = opened, own, places[own]
        self.left = set(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> list[int]:
        """Returns the shape of an existing tensor."""
        found: list[int] = self._slice(name).get_shape()
        return found

    def count(self, name: str) -> int:
        """Returns the number of elements of an existing tensor."""
        return prod(self.shape(name))

    def dtype(self, name: str) -> torch.dtype | None:
        """Returns the dtype of an existing tensor; None for one that weights do not have."""
        return _DTYPES.get(self.dtype_name(name))

    def dtype_name(self, name: str) -> str:
        """Returns the dtype's name in the file, such as "F32"."""
        found: str = self._slice(name).get_dtype()
        return found

    def take(
        self, name: str, shape: Sequence[int], *dtypes: torch.dtype, to: torch.dtype | None = None
    ) -> Tensor:
        """Returns a tensor of this shape and one of these dtypes, cast to `to` while it is read."""
        found = self._expect(name, shape, dtypes)
        made = torch.empty(tuple(shape), dtype=to or found)
        self._read(name, found, made.view(-1))
        return made

    def take_into(self, made: Tensor, name: str, *dtypes: torch.dtype) -> None:
        """Reads a tensor into contiguous memory of its shape, in that memory's dtype."""
        self._read(name, self._expect(name, made.shape, dtypes), made.view(-1))

    def take_entry(self, name: str, index: int, shape: Sequence[int], *dtypes: torch.dtype) -> Tensor:
        """Returns one entry of this shape of a tensor that has `shape[0]` of them."""
        found = self._expect(name, shape, dtypes)
        made = torch.empty(tuple(shape[1:]), dtype=found)
        self._read(name, found, made.view(-1), skipped=index * made.nbytes)
        return made

    def _expect(self, name: str, shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> torch.dtype:
        if name not in self._files:
            raise self.damaged(f"got no tensor {name}, expected one of shape {list(shape)}")
        own = self._names[name]
        if self.shape(name) != list(shape):
            raise self.damaged(f"{own}: got shape {self.shape(name)}, expected {list(shape)}")
        found = self.dtype(name)
        if found is None or found not in dtypes:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            got = self.dtype_name(name) if found is None else str(found)
            raise self.damaged(f"{own}: got {got.removeprefix('torch.')}, expected {expected}")
        self.left.discard(name)
        return found

    def _slice(self, name: str) -> Any:
        return self._files[name].get_slice(self._names[name])

    def _read(self, name: str, dtype: torch.dtype, made: Tensor, skipped: int = 0) -> None:
        """Reads into made, [numbers]; casts in bands. skipped: bytes before the numbers."""
        file, begin, _ = self._places[name]
        with file.open("rb", buffering=0) as stream:
            stream.seek(begin + skipped)
            for part in torch.split(made, _BAND):
                read = part if dtype == made.dtype else torch.empty(len(part), dtype=dtype)
                room = memoryview(read.view(torch.uint8).numpy().data)
                while len(room):
                    count = stream.readinto(room)
                    if not count:
                        raise self.damaged(f"{file.name} ends within {self._names[name]}")
                    room = room[count:]
                if read is not part:
                    part.copy_(read)

    def marked(self, leaf: str) -> list[str]:
        """Returns the modules with a tensor of this name, which marks quantised ones; at least one."""
        found = sorted(name.removesuffix(f".{leaf}") for name in self._files if name.endswith(f".{leaf}"))
        if not found:
            raise self.damaged(f"got no tensor {leaf}, expected one in each quantised module")
        return found

    def groups(self, name: str, inputs: int, group: int) -> int:
        """Returns how many groups the inputs of a module form."""
        if group < 1 or inputs % group or group % 16:
            raise ModelLoadError(
                f"model: {self.folder}: {name} has groups of {group} of its {inputs} inputs, expected a "
                f"multiple of 16 that divides them; {INSTEAD}"
            )
        return inputs // group

    def damaged(self, what: str) -> ModelLoadError:
        return ModelLoadError(
            f"model: {self.folder}: {what}; it may be damaged or cut short (fetch it again), or not what its "
            "config.json says"
        )


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights in a known place, or an index of such."""
    return any((folder / name).is_file() for name in (_SINGLE, _INDEX))


def _places(file: Path) -> dict[str, tuple[Path, int, int]]:
    """Returns the places of the tensors of a file whose header safetensors has checked."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: (file, *(8 + length + offset for offset in entry["data_offsets"]))
        for name, entry in header.items()
    }


def _files_of(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        if not (folder / _SINGLE).is_file():
            raise ModelLoadError(
                f"model: {folder} has neither {_SINGLE} nor {_INDEX}; weights are read from safetensors only"
            )
        return [folder / _SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ModelLoadError(f"model: cannot read {index}; fetch it again. Cause: {cause!r}") from cause
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelLoadError(f"model: {index}: got the file {shown(name)}, expected a name in its folder")
    return [folder / name for name in names]
