"""The pages' install lines match what `make integrations` installs and tests, in the same versions."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import metadata
from pathlib import Path

import pytest

from tts_kernels.integrations.vllm import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs/getting-started.md",
    *sorted((ROOT / "docs/integrations").glob("*.md")),
]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
EXTRA = re.compile(r"\.\[([\w,]+)\]")


def installs(commands: str) -> set[tuple[str, ...]]:
    """Returns, for each `pip install` and `pip uninstall`, the relevant options and one requirement."""
    found = set()
    for command in re.findall(r"pip ((?:un)?install [^&\n]*)", commands):
        verb, *words = shlex.split(command, comments=True)
        target = words.pop(words.index("--target") + 1) if "--target" in words else ""
        chosen = {"--no-deps", "--target"}.intersection(words)
        options = (verb, *sorted(chosen), re.sub(r"^\$\w+|^\$\(\w+\)", "", target))
        found |= {(*options, word) for word in words if not word.startswith("-")}
    return found


def shell_blocks(page: Path) -> str:
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))


def extras_for_tests() -> set[str]:
    """Returns the extras with which make installs what tests need, and what they include at any depth."""
    targets = re.findall(r"^(?:test|distributed):(.*)", MAKEFILE, re.M)
    known = set(re.findall(r"\$\(VENV\)/(\w+)\.stamp", " ".join(targets)))
    for _ in range(5):
        for extra in tuple(known):
            for requirement in metadata("tts-kernels").get_all("Requires-Dist") or ():
                if f'extra == "{extra}"' in requirement.replace("'", '"') and "tts-kernels[" in requirement:
                    known |= set(requirement.partition("[")[2].partition("]")[0].split(","))
    return known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_installs_what_make_installs(page: Path) -> None:
    asked = installs(shell_blocks(page))
    extras = {name for *_, word in asked for found in EXTRA.findall(word) for name in found.split(",")}
    assert extras <= extras_for_tests()
    own = {install for install in asked if EXTRA.fullmatch(install[-1]) or install == ("install", "", ".")}
    assert own < asked
    assert asked - own <= installs(MAKEFILE)


def test_the_table_of_clients_has_the_versions_that_are_installed() -> None:
    page = (ROOT / "docs/integrations/clients.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| [`\w-]+ \| ([\d.]+) \|", page, re.M))
    rule = MAKEFILE.partition("\n$(CLIENTS)/installed.stamp:")[2].partition("\n\n")[0]
    assert told == {word.partition("==")[2] for *_, word in installs(rule)}


def test_the_command_names_the_vllm_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    _, reason = cli.check_installation()
    assert installs(reason) <= installs(MAKEFILE)
