"""`tts-decode strategies`: lists the strategies by family, or describes one of them."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from . import completion
from . import options as opt
from .display import Screen, print_json
from .filled import filled
from .strategy_options import families, get_strategy, shown_options


@filled
def strategies(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of a strategy.", show_default=False, autocompletion=completion.strategies),
    ] = None,
    json_output: opt.Json = False,
) -> None:
    """List the strategies by family, or show one strategy's description and options.

    Examples:

      tts-decode strategies

      tts-decode strategies ets

    Name your own strategy as FILE.py:NAME; docs/own-strategy.md says how to write one.
    """
    chosen = [strategy for members in families().values() for strategy in members]
    if name is not None:
        chosen = [get_strategy(name, "NAME")]
    if json_output:
        described = [
            {
                "name": strategy.name,
                "family": strategy.family,
                "summary": strategy.summary,
                "needs_scorer": strategy.needs_scorer,
                "options": {key: default for key, (_, default) in strategy.plain_options.items()},
            }
            for strategy in chosen
        ]
        print_json(described)
        return
    screen = Screen()
    if name is not None:
        (strategy,) = chosen
        scorer = "; needs a scorer" if strategy.needs_scorer else ""
        about = f" ({strategy.family}{scorer}): {strategy.summary}\n"
        screen.print(Text.assemble((strategy.name, "bold"), about))
        for line in _as_wide_as(screen.width, inspect.cleandoc(strategy.__doc__ or "")):
            screen.print(line, soft_wrap=True)
        screen.print(f"\nOptions for -o, with defaults: {shown_options(strategy)}")
        return
    for family, members in families().items():
        screen.print(Text(family, "bold"))
        for strategy in members:
            screen.print(f"{strategy.name}: {strategy.summary}")
            screen.print(Padding(Text(shown_options(strategy), style="dim"), (0, 0, 0, 4)))


def _as_wide_as(width: int, docstring: str) -> Iterator[str]:
    """Yields a docstring's lines, wrapped at `width`.

    The lines of a paragraph are joined first, and so are those of an entry below "Args:", whose later lines
    are indented deeper. List items stay on separate lines.
    """
    blocks: list[list[str]] = []
    for line in docstring.splitlines():
        before = blocks[-1][0] if blocks else ""
        deeper = _indent(line) - _indent(before)
        goes_on = deeper == 0 if not _indent(before) else deeper > 0
        if before and line and goes_on and not re.match(r"\s*[*-] ", line):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    for block in blocks:
        indent = _indent(block[0])
        yield textwrap.fill(
            " ".join(line.strip() for line in block),
            width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 4 if indent else 0),
            break_long_words=False,
            break_on_hyphens=False,
        )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
