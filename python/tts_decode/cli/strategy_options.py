"""Looks up strategies by name, and parses their options, given as key=value."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ..search import STRATEGIES, Strategy
from .errors import UsageError
from .functions import FUNCTIONS, attribute, names_function, user_function

MOST_WIDE = 100_000
"""Branches that one search may be asked for: a wrong number fills the memory for hours before it fails."""


def get_strategy(name: str, given_as: str = "--strategy") -> Strategy[...]:
    """Returns a strategy by its name, or from FILE.py:NAME. given_as: the option or argument naming it."""
    if names_function(name):
        return _own_strategy(name, given_as)
    if name not in STRATEGIES:
        if name.endswith(".py"):
            raise UsageError(
                f"{given_as}: got {name!r}, expected the function's name behind it, as in {name}:NAME"
            )
        begun = [known for known in STRATEGIES if name and known.startswith(name)]
        close = begun[:3] or difflib.get_close_matches(name, STRATEGIES)
        meant = f"; did you mean {' or '.join(close)}" if close else ""
        raise UsageError(f"{given_as}: got {name!r}, expected the name of a strategy{meant}")
    return STRATEGIES[name]


def _own_strategy(text: str, given_as: str) -> Strategy[...]:
    found = attribute(text, given_as)
    body = found.body if isinstance(found, Strategy) else found
    if not inspect.iscoroutinefunction(body):
        kind = "function that yields" if inspect.isasyncgenfunction(body) else type(body).__name__
        raise UsageError(
            f"{given_as}: got {text!r}, a {kind}, expected a function under the decorator strategy, or "
            "async def NAME(run, *, ...) that ends with `return await run.result()`"
        )
    _check_signature(text, given_as, body)
    if isinstance(found, Strategy):
        return found
    return Strategy(found, (inspect.getdoc(found) or f"of {text}").partition("\n")[0])


def _check_signature(text: str, given_as: str, body: Callable[..., Any]) -> None:
    """Raises UsageError unless a strategy accepts a run and the arguments that -o and --scorer may add."""
    signature = inspect.signature(body)
    required = [
        name
        for name, p in signature.parameters.items()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and name != "scorer"
    ]
    try:
        signature.bind("run", **dict.fromkeys([*required, *({"scorer"} & {*signature.parameters})]))
    except TypeError as error:
        raise UsageError(
            f"{given_as}: got {body.__name__}{signature} of {text!r}, expected NAME(run, *, ...): {error}"
        ) from None
    if required:
        raise UsageError(
            f"{given_as}: got {body.__name__}{signature} of {text!r}, whose option {required[0]} has no "
            "default; give it one, which -o may change"
        )


def parse_options(
    strategies: Sequence[Strategy[...]], pairs: Sequence[str], *, unsafe_tools: bool = False
) -> list[dict[str, Any]]:
    """Returns the options of each strategy.

    "key=value" goes to every strategy that has the key, "strategy.key=value" to that one. If the option is a
    function, its value may be FILE.py:NAME.
    """
    parsed: list[dict[str, Any]] = [{} for _ in strategies]
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--option: got {pair!r}, expected KEY=VALUE, such as n=8")
        owner, dot, name = key.rpartition(".")
        if dot and owner not in {strategy.name for strategy in strategies}:
            raise UsageError(f"--option: got {pair!r}, but {owner!r} is not among the strategies that run")
        takers = [
            (strategy, options)
            for strategy, options in zip(strategies, parsed, strict=True)
            if owner in ("", strategy.name)
            and (name in strategy.plain_options or (name in FUNCTIONS and name in strategy.parameters))
        ]
        if not takers:
            names = dict.fromkeys(known for strategy in strategies for known in strategy.plain_options)
            close = difflib.get_close_matches(name, names)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            raise UsageError(
                f"--option: got {pair!r}, but no strategy that runs has {name!r}; {meant}known: "
                f"{_known(strategies)}"
            )
        for strategy, options in takers:
            if name in strategy.plain_options:
                options[name] = _convert(pair, value, strategy.plain_options[name][0])
                if name == strategy.size and isinstance(options[name], int) and options[name] > MOST_WIDE:
                    raise UsageError(f"--option {name}: got {value}, expected at most {MOST_WIDE:,}")
            else:
                options[name] = user_function(name, value, unsafe_tools=unsafe_tools)
    return parsed


def _convert(pair: str, text: str, kind: type) -> bool | int | float | str:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"--option: got {pair!r}, expected true or false")
        return text.lower() == "true"
    try:
        return kind(text)  # type: ignore[no-any-return]
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        raise UsageError(f"--option: got {pair!r}, expected {expected}") from None


def _known(strategies: Sequence[Strategy[...]]) -> str:
    described = [f"{strategy.name} ({shown_options(strategy)})" for strategy in strategies]
    return "; ".join(described)


def shown_options(strategy: Strategy[...]) -> str:
    """Returns the options that text can express, with their defaults, in one line."""
    shown = []
    for name, (kind, default) in strategy.plain_options.items():
        text = kind.__name__.upper() if default is None else str(default).replace("\n", "\\n")
        text = text.lower() if kind is bool and default is not None else text
        shown.append(f"{name}={text if len(text) <= 24 else '...'}")
    return ", ".join(shown)


def families() -> dict[str, list[Strategy[...]]]:
    """Returns the strategies by family, in the order in which both are listed."""
    found: dict[str, list[Strategy[...]]] = {}
    for strategy in STRATEGIES.values():
        found.setdefault(strategy.family, []).append(strategy)
    return found
