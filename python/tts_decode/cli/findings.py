"""What `doctor` finds: each thing by itself, with its state and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

State = Literal["ok", "absent", "warning", "broken"]
"""absent: an optional thing that is not there. warning: it is there and not as it should be. broken: the base
installation needs it."""


@dataclass(frozen=True)
class Finding:
    """One line. value: for JSON where it says more than `found`."""

    name: str
    found: str
    state: State = "ok"
    remedy: str | None = None
    value: Any = None

    def to_dict(self) -> dict[str, Any]:
        value = {} if self.value is None else {"value": self.value}
        return {"name": self.name, "state": self.state, "found": self.found, "remedy": self.remedy, **value}


class Section(NamedTuple):
    """base: whether the base installation needs what is looked at, so that an error there is a broken one."""

    title: str
    look: Callable[[], list[Finding]]
    base: bool = False


def examine(section: Section) -> list[Finding]:
    """What a section finds; an error of whatever kind is a finding too."""
    try:
        return section.look()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a broken extension module may raise even what is no Exception
        told = " ".join(f"{type(error).__name__}: {error}".split())
        state: State = "broken" if section.base else "warning"
        return [Finding(section.title.lower(), f"could not be looked at: {told}", state)]
