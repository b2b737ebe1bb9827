"""The notebooks of docs/notebooks run from top to bottom, and print what is kept in them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXACT = {"tree-in-pages"}  # integers alone; a model's texts differ between kinds of CPU


def code_cells(file: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(file.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def printed_by(source: str, namespace: dict[str, object], name: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, name, "exec"), namespace)
    return printed.getvalue()


@pytest.mark.model
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, real_model: object) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(file)):
        printed = printed_by("".join(cell["source"]), namespace, f"{file.name}, code cell {number}")
        kept = "".join(text for output in cell["outputs"] for text in output["text"])
        assert bool(printed) == bool(kept)
        if file.stem in EXACT:
            assert printed == kept


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_was_saved_after_running_from_top_to_bottom(file: Path) -> None:
    cells = code_cells(file)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} == {"stream"}
    for cell in cells:
        ast.parse("".join(cell["source"]))
