"""Every public exception is on the page of errors, with a cause and a remedy."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from tts_kernels.errors import TTSError

PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"
FACES = (
    "errors",
    "search",
    "select",
    "rewards",
    "grading",
    "tasks",
    "sandbox",
    "sweeps",
    "plots",
    "view",
    "cost",
)
MODULES = {
    "`tts_kernels`": ["tts_kernels"],
    "`tts_decode`": ["tts_decode", *(f"tts_decode.{name}" for name in (*FACES, "cluster"))],
    "Integrations": ["tts_kernels.integrations.transformers", "tts_kernels.integrations.vllm.support"],
}


def rows(section: str) -> dict[str, list[str]]:
    """Cause and remedy of each error of a section."""
    text = PAGE.read_text(encoding="utf-8").partition(f"### {section}\n")[2].partition("\n#")[0]
    found = re.findall(r"^\| `(\w+)`[^|]* \| (.*) \| (.*) \|$", text, re.MULTILINE)
    return {name: cells for name, *cells in found}


@pytest.mark.parametrize("section", MODULES)
def test_every_public_exception_has_a_cause_and_a_remedy(section: str) -> None:
    public = set()
    for name in MODULES[section]:
        module = import_module(name)
        values = {each: getattr(module, each) for each in getattr(module, "__all__", vars(module))}
        errors = {
            each for each in values if isinstance(values[each], type) and issubclass(values[each], TTSError)
        }
        public |= errors
    if name != "tts_kernels":
        public.discard("TTSError")  # listed once
    listed = rows(section)
    assert public - set(listed) == set()
    assert [name for name, cells in listed.items() if min(map(len, cells)) < 8] == []


def test_the_page_lists_no_exception_that_is_gone() -> None:
    known = {"MaskError"}  # of a module that exports its base class
    for name in (name for names in MODULES.values() for name in names):
        known |= set(vars(import_module(name))) | set(getattr(import_module(name), "__all__", ()))
    assert {name for section in MODULES for name in rows(section)} - known == set()
