"""Commands whose options fill dataclasses, which several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints


def filled(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a command for typer of a function.

    Each field of a parameter that is a dataclass becomes an option, annotated as a parameter would be. Other
    parameters stay as they are. The function's docstring is the help.
    """
    hints = get_type_hints(function, include_extras=True)
    plain = list(inspect.signature(function).parameters.values())
    groups = {p.name: hints[p.name] for p in plain if is_dataclass(hints[p.name])}
    spread = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
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
    """Name, default and annotation of each field."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        yield field.name, _default(field), hints[field.name]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default
