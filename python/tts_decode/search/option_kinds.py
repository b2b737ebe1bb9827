"""Checks before a search that a strategy's options are of the kinds in its signature.

The strategies themselves check ranges of numbers and names of choices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from inspect import Parameter
from string import Formatter

from tts_kernels.checks import instance, number, shown

_OR_NONE = " | None"
_FUNCTIONS = {
    "Embed": "a function of steps",
    "Extract": "a function of a text",
    "Scorer": "an async function of branches",
    "Tests": "a function of a text",
    "TextFunction": "a function of a text",
    "Tool": "a function of code",
    "Trigger": "an async function of a branch and a position",
}


def check_kinds(parameters: Mapping[str, Parameter], options: Mapping[str, object]) -> None:
    """Raises TypeError or ValueError, naming the option, unless each is of its expected kind.

    That is a text, truth value, function, decoder or sequence; a prompt may only have the fields that are
    filled in.
    """
    for name, value in options.items():
        parameter = parameters[name]
        kind = str(parameter.annotation)
        if kind.endswith(_OR_NONE):
            if value is None:
                continue
            kind = kind.removesuffix(_OR_NONE)
        if kind in _FUNCTIONS:
            _check(name, value, callable(value), _FUNCTIONS[kind])
        elif kind == "Decoder":
            _check(name, value, _is_decoder(value), "a decoder")
        elif kind == "bool":
            instance(name, value, bool)
        elif kind == "str":
            text = instance(name, value, str)
            if name.endswith("_prompt"):
                _check_fields(name, text, str(parameter.default))
        elif kind in ("Sequence[Decoder]", "Sequence[float]", "Sequence[str]"):
            _check_sequence(name, value, kind)


def _check_sequence(name: str, value: object, kind: str) -> None:
    several = {"Sequence[Decoder]": "decoders", "Sequence[float]": "numbers", "Sequence[str]": "texts"}[kind]
    _check(name, value, isinstance(value, Iterable) and not isinstance(value, str), f"a list of {several}")
    for index, item in enumerate(value):  # type: ignore[arg-type, var-annotated]  # it was checked
        place = f"{name}[{index}]"
        if kind == "Sequence[float]":
            number(place, item)
        elif kind == "Sequence[str]":
            instance(place, item, str)
        else:
            _check(place, item, _is_decoder(item), "a decoder")


def _check_fields(name: str, text: str, default: str) -> None:
    """Checks that a prompt has only fields of its default, if that has any."""
    known = _fields(default)
    if not known:
        return
    try:
        problem = next((f"the field {{{field}}}" for field in sorted(_fields(text) - known)), None)
    except ValueError as error:
        problem = f"{shown(text)}: {error}"
    if problem is not None:
        listed = ", ".join(f"{{{field}}}" for field in sorted(known))
        raise ValueError(f"{name}: got {problem}, expected {listed}; write {{{{ and }}}} for other braces")


def _fields(text: str) -> set[str]:
    """Returns the names of the fields, without their attributes and indices."""
    names = (field for _, field, _, _ in Formatter().parse(text) if field is not None)
    return {re.split(r"[.\[]", name)[0] for name in names}


def _is_decoder(value: object) -> bool:
    return callable(getattr(value, "root", None))


def _check(name: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}")
