"""Commands whose options fill dataclasses, which several commands share; each option shows its type."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

# Placeholders next to an option in the help; none for a flag.
_METAVARS = {bool: "", int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def filled(function: Callable[..., None]) -> Callable[..., None]:
    """Turns a function into a command for typer.

    If a parameter is a dataclass, each of its fields becomes an option, annotated as a parameter would be.
    Other parameters stay unchanged. An option without a metavar gets its type's. The function's docstring is
    the help.
    """
    hints = get_type_hints(function, include_extras=True)
    plain = list(inspect.signature(function).parameters.values())
    groups = {p.name: hints[p.name] for p in plain if is_dataclass(hints[p.name])}
    spread = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_with_metavar(annotation)
        )
        for parameter in plain
        for name, default, annotation in (
            _options(groups[parameter.name])
            if parameter.name in groups
            else [(parameter.name, parameter.default, hints[parameter.name])]
        )
    ]

    def command(**values: Any) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        function(**made, **values)

    command.__doc__, command.__name__ = function.__doc__, function.__name__
    command.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


def _options(kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, default and annotation of each field."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        yield field.name, _default(field), hints[field.name]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _with_metavar(annotation: Any) -> Any:
    """Returns an option's annotation, with a metavar added if it has none."""
    if get_origin(annotation) is not Annotated:
        return annotation
    kind, *notes = get_args(annotation)
    while get_origin(kind) is not None:  # int | None, list[int]
        kind = next(part for part in get_args(kind) if part is not type(None))
    for i, note in enumerate(notes):
        if isinstance(note, OptionInfo) and note.metavar is None and kind in _METAVARS:
            notes[i] = copy(note)
            notes[i].metavar = _METAVARS[kind]
    return Annotated[tuple([get_args(annotation)[0], *notes])]
