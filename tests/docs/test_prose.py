"""Pages and docstrings read as written by a native: proselint and a list of phrases find nothing in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from prose import PHRASES, faults, of_module, of_page

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
MODULES = sorted([*(ROOT / "python").rglob("*.py"), *(ROOT / "tts_kernels").rglob("*.py")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page(page: Path) -> None:
    assert list(faults(of_page(page))) == []


@pytest.mark.parametrize(
    "folder", sorted({module.parent for module in MODULES}), ids=lambda folder: folder.name
)
def test_docstrings(folder: Path) -> None:
    found = {
        f"{module.relative_to(ROOT)}:{line}": fault
        for module in MODULES
        if module.parent == folder
        for line, fault in faults(of_module(module))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        *((f"First.\nHere is {phrase} it.", 2) for phrase in PHRASES),
        ("One.\n\nIt is the the same.", 3),
        ("It is\nin\nturns.", 2),
    ],
)
def test_a_fault_is_found_where_it_is(text: str, line: int) -> None:
    assert [found for found, _ in faults(text)] == [line]


def test_code_is_no_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# So\n\n```sh\nso many in turns\n```\n`that of` is [code](that-of).\n\n| that of |\n")
    assert list(faults(of_page(page))) == []
    module = tmp_path / "module.py"
    module.write_text('"""Says\nso many."""\n\nx = "that of"\n\ndef f():\n    """In turns."""\n')
    assert [line for line, _ in faults(of_module(module))] == [2, 7]
