"""The page: a frame, styles, scripts and the searches as JSON, in one file.

The content of the searches comes from a model and is never trusted. The page holds it only as JSON in which
no tag can begin or end, and the scripts insert it into the document as text. The page's own policy allows, by
hash, only the scripts and styles that it was made with, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from string import Template
from typing import Any

from ..records.strict_json import dumps, finite
from ..search import SearchResult
from ..version import package_version

MOST_BYTES = 64 << 20
"""Bytes of JSON in a page by default: as much as a browser reads within seconds."""

# In this order: each uses what those before it define.
_SCRIPTS = ("text", "model", "layout", "drawing", "tree_canvas", "details", "timeline", "choice", "main")
_LISTED = 1000  # characters of a text in the list of searches; the trees have the whole text
_UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


@dataclass(frozen=True)
class Problem:
    """A question.

    index: its number among the run's problems. expected, solved: None if unknown. error: why the search
    failed.
    """

    index: int = 0
    task: str = "prompt"
    prompt: str = ""
    expected: str | None = None
    solved: bool | None = None
    error: str | None = None


@dataclass(frozen=True)
class Shown:
    """A search to show. result: None if it failed. settings: JSON values, shown as they are."""

    strategy: str
    result: SearchResult | None
    problem: Problem = field(default_factory=Problem)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """left_out: searches that are listed without their trees because the page is full."""

    html: str
    searches: int
    left_out: int


def make_page(searches: Sequence[Shown], *, title: str, most_bytes: int = MOST_BYTES) -> Page:
    """Returns the page of these searches, in their order.

    Args:
        most_bytes: limit of the JSON of all trees. The first trees that fit are included; other searches are
            only listed.
    """
    listed: list[dict[str, Any]] = []
    blocks: list[str] = []
    used, full = 0, False
    for search in searches:
        block = None
        if search.result is not None and not full:
            text = _embedded(search.result.to_dict())
            full = bool(blocks) and used + len(text) > most_bytes
            if not full:
                block, used = len(blocks), used + len(text)
                blocks.append(text)
        listed.append(_summary(search) | {"block": block})
    settings = {search.strategy: finite(dict(search.settings)) for search in searches}
    index = {"title": title, "version": package_version(), "searches": listed, "settings": settings}
    left_out = sum(item["block"] is None and item["nodes"] is not None for item in listed)
    return Page(_document(title, _embedded(index), blocks), len(blocks), left_out)


def _summary(search: Shown) -> dict[str, Any]:
    result = search.result
    about = {"strategy": search.strategy, "nodes": None if result is None else len(result.tree)}
    about |= asdict(search.problem)
    if result is not None and not search.problem.prompt:
        about["prompt"] = result.tree[0].question or result.tree[0].text
    return {name: value[:_LISTED] if isinstance(value, str) else value for name, value in about.items()}


def _embedded(value: Any) -> str:
    """Returns JSON in ASCII in which HTML sees no tag, no comment and no entity."""
    return dumps(value).translate(_UNSAFE)


def _document(title: str, index: str, blocks: Iterable[str]) -> str:
    style = _asset("assets/style.css")
    scripts = [_asset("vendor/d3.min.js"), _program()]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    data = [f'<script type="application/json" id="index">{index}</script>']
    data += [
        f'<script type="application/json" id="search-{number}">{block}</script>'
        for number, block in enumerate(blocks)
    ]
    return Template(_asset("assets/page.html")).substitute(
        policy=policy,
        title=html.escape(title),
        style=style,
        data="\n".join(data),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _program() -> str:
    parts = [_asset(f"assets/{name}.js") for name in _SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
