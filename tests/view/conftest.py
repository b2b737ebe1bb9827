"""Searches to look at, and the browser to look at them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from needed import missing
from pages import SHEEP
from tts_decode.search import SearchResult, read_json
from tts_decode.view import Problem, Shown, make_page


@pytest.fixture(scope="session")
def sheep() -> SearchResult:
    return read_json(SHEEP)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    for program in (chromium.CHROMIUM, chromium.DRIVER):
        if not program.exists():
            missing(f"needs {program}, which `make chromium` installs")
    with chromium.browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def opened(driver: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page of searches; at the end nothing may have been complained of in its console."""

    def open_page(*searches: Shown | SearchResult, width: int = 1400, height: int = 900) -> Any:
        shown = [s if isinstance(s, Shown) else Shown(s.strategy, s, Problem()) for s in searches]
        file = tmp_path / "page.html"
        file.write_text(make_page(shown, title="runs/farm").html, encoding="utf-8")
        chromium.resize(driver, width, height)
        driver.get(file.as_uri())
        driver.execute_async_script(
            "const done = arguments[0], look = () => document.documentElement.dataset.drawn ? done() : "
            "setTimeout(look, 5); look()"
        )
        return driver

    yield open_page
    assert chromium.complaints(driver) == []
