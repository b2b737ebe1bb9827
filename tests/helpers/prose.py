"""Extracts the prose of pages and modules, and finds faults in it with proselint and our own list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path

from proselint.checks import __register__
from proselint.config import Config
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

# The groups of proselint that apply to prose about software. Its typography mistakes quotes in code for text.
_GROUPS = (
    *("annotations", "archaism", "cliches", "hedging", "lexical_illusions", "malapropisms", "mondegreens"),
    *("needless_variants", "nonwords", "oxymorons", "redundancy", "uncomparables", "weasel_words"),
)

# Phrases that read as a translation -> a native writer's words.
PHRASES = {
    "so many": "name the number, or `that many`",
    "in turns": "alternately, or: take turns",
    "that of": "repeat the noun, or use a possessive",
    "one after the other": "in order, or one at a time",
}

_HEADING = re.compile(r"^#+ (.*)$", re.M)
_DEFINED = re.compile(r"^[\w, ]+? {2,}(?=\S)", re.M)  # the name in a list of names and what they mean
# Fences, titles of papers, indented code, tables, comments of HTML, inline code, targets of links, addresses.
_NO_PROSE = re.compile(
    r'^```.*?^```|"[^"]+",\s+arXiv|^ {4,}\S.*?$'
    r"|^\|.*?$|<!--.*?-->|``.+?``|`[^`\n]+`|\]\([^)\s]*\)|https?://\S+",
    re.M | re.S,
)


def of_page(file: Path) -> str:
    """Returns a Markdown page's prose, on its original lines."""
    return _without_code(file.read_text(encoding="utf-8"))


def of_module(file: Path) -> str:
    """Returns a Python module's docstrings, on their original lines."""
    source = file.read_text(encoding="utf-8")
    lines = [""] * (source.count("\n") + 2)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                told = first.value.value
                for number, line in enumerate(told.splitlines() if isinstance(told, str) else ()):
                    lines[first.lineno - 1 + number] = line.strip()
    return _without_code("\n".join(lines))


def faults(text: str) -> Iterator[tuple[int, str]]:
    """Yields line and fault, in the order of the lists."""
    for phrase, better in PHRASES.items():
        for match in re.finditer(r"\b" + phrase.replace(" ", r"\s+") + r"\b", text, re.I):
            yield text.count("\n", 0, match.start()) + 1, f"{phrase!r}: {better}"
    _register()
    if text.strip():
        for found in LintFile("<prose>", text).lint(
            Config(max_errors=1000, checks=dict.fromkeys(_GROUPS, True))
        ):
            yield found.pos[0], found.check_result.message


@cache
def _register() -> None:
    CheckRegistry().register_many(__register__)


def _without_code(text: str) -> str:
    """Replaces each piece of code by a unique word: proselint reports a repeated word as a fault."""
    pieces = count()

    def word(match: re.Match[str]) -> str:
        lines = match[0].count("\n")
        inline = match[0].startswith("`") and not lines
        return f"N{next(pieces)}x" if inline else "\n" * lines

    return _DEFINED.sub("", _HEADING.sub(r"\1.", _NO_PROSE.sub(word, text)))
