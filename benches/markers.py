"""Fills the parts of a page that are generated from measurements, between markers that readers do not see."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PART = re.compile(r"^<!-- measured: ([^\n]*) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"^<!-- (?:measured: .*|end) -->$", re.MULTILINE)


class PageError(ValueError):
    """The markers of a page do not match its tables."""


def fill(page: str, texts: Mapping[str, str]) -> str:
    """Returns the page with `texts[NAME]` between each `<!-- measured: NAME -->` and `<!-- end -->`.

    Raises PageError, naming the marker, if one is missing, not closed, duplicated, or has a name that is not
    in `texts`.
    """
    parts = list(_PART.finditer(page))
    names = [part[1] for part in parts]
    if len(_MARKER.findall(page)) != 2 * len(parts) or any(_MARKER.search(part[2]) for part in parts):
        raise PageError(
            "markers: got one without its other; put <!-- end --> behind each <!-- measured: NAME -->"
        )
    for name in names:
        if name not in texts:
            raise PageError(f"<!-- measured: {name} -->: expected one of {', '.join(texts)}")
        if names.count(name) > 1:
            raise PageError(f"<!-- measured: {name} -->: got {names.count(name)} in the page, expected one")
    if missing := [name for name in texts if name not in names]:
        raise PageError(
            f"<!-- measured: {missing[0]} -->: is not in the page; put it where its table belongs"
        )
    return _PART.sub(
        lambda part: f"<!-- measured: {part[1]} -->\n\n{texts[part[1]].strip()}\n\n<!-- end -->", page
    )
