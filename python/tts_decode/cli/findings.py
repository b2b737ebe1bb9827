"""The findings of `doctor`, each with its state and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

State = Literal["ok", "absent", "warning", "broken"]
"""absent: an optional thing that is not there. warning: it is there and not as it should be. broken: the base
installation needs it."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. value: for JSON, if it says more than `found`."""

    name: str
    found: str
    state: State = "ok"
    remedy: str | None = None
    value: Any = None

    def to_dict(self) -> dict[str, Any]:
        value = {} if self.value is None else {"value": self.value}
        return {"name": self.name, "state": self.state, "found": self.found, "remedy": self.remedy, **value}


class Section(NamedTuple):
    """A group of checks. base: whether the base installation needs them, so that an error breaks it."""

    title: str
    look: Callable[[], list[Finding]]
    base: bool = False


def examine(section: Section) -> list[Finding]:
    """Returns a section's findings; an error of any kind is a finding too."""
    try:
        return section.look()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a broken extension module may raise anything
        told = " ".join(f"{type(error).__name__}: {error}".split())
        state: State = "broken" if section.base else "warning"
        return [Finding(section.title.lower(), f"could not be looked at: {told}", state)]
