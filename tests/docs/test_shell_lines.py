"""Each `tts-decode` line of the pages names commands, strategies and options that there are."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tts_decode.cli.command_table import command_table

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TABLE = command_table()


def lines(page: Path) -> Iterator[list[str]]:
    """The words of each call in a block of shell, up to a pipe or a comment."""
    for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            called = re.search(r"(?:^|[ &])tts-decode ([^|>&]*)", line)
            if called is not None:
                yield shlex.split(called[1], comments=True)


@pytest.mark.parametrize("page", [page for page in PAGES if [*lines(page)]], ids=lambda page: page.stem)
def test_a_page_calls_what_there_is(page: Path) -> None:
    for command, *words in lines(page):
        if command.startswith("--"):
            assert command in ("--help", "--version", "--install-completion"), (command, words)
            continue
        described = TABLE["commands"][command]
        if "commands" in described:
            subcommand, *words = words
            described = described["commands"][subcommand]
        known = {"--help"}
        for parameter in described["parameters"]:
            named = f"--{parameter['name'].replace('_', '-')}"
            known |= {flag for given in parameter["flags"] or [named] for flag in given.split("/")}
        assert {word for word in words if re.match("--?[a-z]", word)} <= known, (command, words)
        for option, value in itertools.pairwise(words):
            if option in ("-s", "--strategy") and command in ("search", "compare", "sweep"):
                assert value in TABLE["strategies"] or re.fullmatch(r".+\.py:\w+", value), value
