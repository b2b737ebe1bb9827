"""Commands whose options fill a dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar, get_type_hints

S = TypeVar("S")


def filled(settings: type[S]) -> Callable[[Callable[[S], None]], Callable[..., None]]:
    """Makes a command for typer of a function of `settings`, a dataclass: each field is an option, annotated
    as a parameter would be. The function's docstring is the help."""
    hints = get_type_hints(settings, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name]
        )
        for field in fields(settings)  # type: ignore[arg-type]  # a dataclass
    ]

    def decorate(function: Callable[[S], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            function(settings(**values))

        command.__doc__, command.__name__ = function.__doc__, function.__name__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {}
        return command

    return decorate


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default
