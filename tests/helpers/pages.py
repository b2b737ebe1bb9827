"""Pages of the viewer read without a browser, and searches to put on them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from tts_decode.search import Candidate, Node, SearchResult, SearchStats

SHEEP = Path(__file__).parents[1] / "view/sheep.json"
"""A search of the default model: ets with n=16 on one question, 87 nodes; figures rounded."""


class Elements(HTMLParser):
    """Every tag of a page with its attributes, and the text of each script that has an id."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._id: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._id is not None:
            self.scripts[self._id] = self.scripts.get(self._id, "") + data


def search(text: str, question: str = "What?") -> SearchResult:
    nodes = (
        Node(0, -1, question, (1, 2), status="prompt", question=question),
        Node(1, 0, text, (3,), (-0.5,), (1.0,), status="finished", ends=(len(text),)),
    )
    best = Candidate(text, (3,), -0.5, None, (), "eos", 1)
    return SearchResult("best_of_n", best, (best,), nodes, SearchStats(1.0, 1))


HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]></SCRIPT ><svg/onload=alert(1)>",
    "\u2028\u2029\x00\x1b[31m\u202e&lt;&amp;",
    "${alert(1)} `$title` $data",
    "\U0001f600 e\u0301 \ufeff",
]
