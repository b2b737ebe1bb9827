"""Every Python block of the README and the documents runs, those of one file in one namespace."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tts_decode.search import STRATEGIES

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("*.md"), *(ROOT / ".github").glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(file: Path) -> list[tuple[int, str]]:
    """The blocks with the line on which each begins."""
    text = file.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.model
@pytest.mark.parametrize("file", [file for file in FILES if blocks(file)], ids=lambda file: file.name)
def test_python_blocks_run(
    file: Path, real_model: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what a block writes is no part of the checkout
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, source in blocks(file):
        # Empty lines in front give tracebacks the document's own line numbers.
        exec(compile("\n" * line + source, str(file), "exec"), namespace)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_local_links_exist(file: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", file.read_text(encoding="utf-8")):
        page = file.parent / target if target else file
        assert page.exists(), f"{file.name}: {target}"
        assert not anchor or anchor in anchors(page), f"{file.name}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings as GitHub makes them: lower case, hyphens, no other signs."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S), re.M)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def test_every_page_is_in_the_menu_of_the_site() -> None:
    """`make docs` fails otherwise, and is not part of `make test`."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"[\w/-]+\.md", menu))
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert pages - listed == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_named_paths_exist(file: Path) -> None:
    """Those in back-ticks that begin with a folder of the repository; words in capitals stand for others."""
    folders = {folder.name for folder in ROOT.iterdir() if folder.is_dir() and folder.name[0] != "."}
    pattern = rf"`((?:{'|'.join(folders - {'build'})})/[\w./-]+)`"
    named = re.findall(pattern, file.read_text(encoding="utf-8"))
    paths = [name for name in named if not re.search("NAME|FAMILY", name)]
    assert [name for name in paths if not (ROOT / name).exists()] == []


def test_every_registered_operator_is_listed() -> None:
    section = (ROOT / "docs/stability.md").read_text("utf-8").partition("Registered with torch")[2]
    listed = set(re.findall(r"`(\w+)`", section.partition(". ")[0])) - {"tts_kernels"}
    assert listed == {name for name in dir(torch.ops.tts_kernels) if name[0] != "_"} - {"name"}


@pytest.mark.parametrize(
    "module", ["", ".search", ".rewards", ".select", ".cost", ".tasks", ".sweeps", ".view"]
)
def test_public_modules_list_what_they_export(module: str) -> None:
    face = import_module(f"tts_decode{module}")
    assert len(set(face.__all__)) == len(face.__all__)
    assert [name for name in face.__all__ if not hasattr(face, name)] == []


def test_architecture_maps_every_folder() -> None:
    mapped = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE))
    sources = [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("tts_kernels/**/*.py"), *ROOT.glob("python/**/*.py")]
    folders = {str(file.parent.relative_to(ROOT)) for file in sources}
    assert folders <= mapped


def test_every_strategy_is_in_the_table() -> None:
    table = (ROOT / "docs/strategies.md").read_text(encoding="utf-8")
    missing = [
        strategy.name
        for strategy in STRATEGIES.values()
        if strategy.family != "own"  # of another test
        and f"| [`{strategy.name}`](../python/tts_decode/search/{strategy.family}/{strategy.name}.py)"
        not in table
    ]
    assert missing == []
