"""The documentation site that `make docs` built into build/site; skipped where it was not built."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from needed import missing

SITE = Path(__file__).parents[2] / "build/site"
if not (SITE / "index.html").exists():
    missing("needs build/site, which `make docs` builds")

PAGES = sorted(SITE.rglob("*.html"))
LOADS = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "image": "href",
    "img": "src",
    "input": "src",
    "object": "data",
    "script": "src",
    "source": "src",
    "track": "src",
    "use": "href",
    "video": "src",
}
LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}


class Found(HTMLParser):
    """A page's resources, its links, and the anchors that links can name."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        if "id" in given:
            self.places.add(given["id"])
        if tag in LOADS and LOADS[tag] in given:
            self.loads.add(given[LOADS[tag]])
        for one in given.get("srcset", "").split(","):
            self.loads |= set(one.split()[:1])
        if tag == "link" and LOADING_LINKS.intersection(given.get("rel", "").split()):
            self.loads.add(given["href"])
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        self.loads |= {url for url in urls_of_style(given.get("style", ""))}


@cache
def found_on(page: Path) -> Found:
    return Found(page)


def urls_of_style(style: str) -> list[str]:
    """Returns the resources that a style sheet loads."""
    return [
        url.strip("'\" ")
        for pair in re.findall(r"url\(([^)]*)\)|@import\s+([^;]+)", style)
        for url in pair
        if url
    ]


def is_elsewhere(url: str) -> bool:
    return url.startswith("//") or urlsplit(url).scheme not in ("", "data")


def test_the_parser_finds_what_a_browser_loads(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel="stylesheet" href="//a.org/x.css"><script src="https://b.org/x.js"></script>'
        '<img srcset="c.png 1x, https://d.org/x.png 2x"><p style="background: url(http://e.org/x)" id="here">'
        '<a href="https://f.org/">f</a><link rel="canonical" href="https://g.org/">'
    )
    found = Found(page)
    assert {url for url in found.loads if is_elsewhere(url)} == {
        "//a.org/x.css",
        "https://b.org/x.js",
        "https://d.org/x.png",
        "http://e.org/x",
    }
    assert (found.links, found.places) == ({"https://f.org/"}, {"here"})


def test_no_page_loads_anything_from_another_host() -> None:
    elsewhere = {(page.name, url) for page in PAGES for url in found_on(page).loads if is_elsewhere(url)}
    assert elsewhere == set()


def test_no_style_or_picture_loads_anything_from_another_host() -> None:
    elsewhere = {
        (file.name, url)
        for file in SITE.rglob("*.css")
        for url in urls_of_style(file.read_text(encoding="utf-8"))
        if is_elsewhere(url)
    }
    for file in SITE.rglob("*.svg"):
        loaded = re.findall(r'(?:<image[^>]*|<use[^>]*) (?:xlink:)?href="([^"]*)"', file.read_text("utf-8"))
        elsewhere |= {(file.name, url) for url in loaded if is_elsewhere(url)}
    assert elsewhere == set()


def test_no_page_has_what_material_draws_with_scripts_of_another_host() -> None:
    """Its bundle fetches mermaid from a host of its own where a page has such a block."""
    marked = [page.name for page in PAGES if re.search(r'class="[^"]*mermaid', page.read_text("utf-8"))]
    assert marked == []


def test_colours_follow_the_system_after_the_first_visit() -> None:
    """A browser keeps the first choice of the list, which has to be the one that follows the system."""
    choices = re.findall(r'data-md-color-media="([^"]*)"', (SITE / "index.html").read_text(encoding="utf-8"))
    assert choices[0] == "(prefers-color-scheme)"


def test_every_link_leads_to_a_page_and_a_place_in_it() -> None:
    places = {page: found_on(page) for page in PAGES}
    dead = set()
    for page, found in places.items():
        if page.name == "404.html":  # its links start from the top of a host
            continue
        for link in found.links | found.loads:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (
                parts.fragment and unquote(parts.fragment) not in places[target].places
            ):
                dead.add((str(page.relative_to(SITE)), link))
    assert dead == set()


@pytest.mark.parametrize("package", ["tts_kernels", "tts_kernels.integrations.transformers", "tts_decode"])
def test_the_reference_has_every_public_name(package: str) -> None:
    """At the place that the package gives it, or the family of strategies that exports it."""
    names = {package: import_module(package).__all__}
    if package == "tts_decode":
        faces = [page.stem for page in (SITE / "reference").glob("*.html")]
        modules = [f"{package}.{face}" for face in faces if find_spec(f"{package}.{face}") is not None]
        assert len(modules) >= 11
        names |= {module: getattr(import_module(module), "__all__", []) for module in modules}
    places = {place for page in (SITE / "reference").glob("*.html") for place in found_on(page).places}
    found = {(re.sub(r"^(tts_decode\.search)\.\w+(?=\.)", r"\1", place), place) for place in places}
    known = {place for pair in found for place in pair}
    missed = {f"{module}.{name}" for module in names for name in names[module] if name != "__version__"}
    assert missed - known == set()
