"""The `quantization_config` of a saved model, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tts_kernels.checks import shown

from ...errors import ModelLoadError

INSTEAD = (
    "load the model's float checkpoint with weights='int8' or weights='int4', or a GGUF file of it, whose "
    "weights stay quantised"
)


class Settings:
    """Fields that say how weights are quantised, checked before any weight is read.

    Args:
        fields: as in config.json.
        source: of the model, for errors: its folder, or id on the hub.
        path: of these fields in config.json.
    """

    def __init__(self, fields: Any, source: Path | str, path: str = "quantization_config") -> None:
        self.source, self.path = source, path
        if not isinstance(fields, Mapping):
            raise ModelLoadError(f"model: {source}: {path}: got {shown(fields)}, expected an object of JSON")
        self._fields = fields

    def __contains__(self, name: str) -> bool:
        """Whether the field is present and not null."""
        return self._fields.get(name) is not None

    def one_of(self, name: str, *allowed: Any, default: Any = None) -> Any:
        """Returns the field, or the default if it is missing or null; strings in lower case."""
        value = self._fields[name] if name in self else default
        known = value.lower() if isinstance(value, str) else value
        for option in allowed:
            if type(known) is type(option) and known == option:
                return option
        raise self.refuse(name, " or ".join(map(repr, allowed)))

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._fields[name] if name in self else default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refuse(name, "an integer")
        return value

    def strings(self, name: str) -> list[str]:
        value = self._fields.get(name) or []
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.refuse(name, "a list of strings")
        return value

    def under(self, name: str) -> Settings:
        """Returns the fields of a nested object."""
        return Settings(self._fields.get(name), self.source, f"{self.path}.{name}")

    def objects(self, name: str) -> list[Settings]:
        """Returns the objects of an object of objects, at least one."""
        inside = self.under(name)
        if not inside._fields:
            raise self.refuse(name, "at least one entry")
        return [inside.under(entry) for entry in inside._fields]

    def require_absent(self, name: str, what: str) -> None:
        """Raises ModelLoadError if the field is set."""
        if self._fields.get(name):
            raise ModelLoadError(
                f"model: {self.source}: {self.path}.{name} asks for {what}, which is not served; {INSTEAD}"
            )

    def refuse(self, name: str, expected: str) -> ModelLoadError:
        got = shown(self._fields.get(name))
        return ModelLoadError(
            f"model: {self.source}: {self.path}.{name}: got {got}, expected {expected}; {INSTEAD}"
        )
