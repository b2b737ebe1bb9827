"""Text from outside (models, files, servers, arguments) as a terminal may be given it."""

from __future__ import annotations

import re
import unicodedata

_PLAIN = re.compile(r"[\n\t\x20-\x7e]*")
_JOINERS = "\u200c\u200d"  # of Indic and Persian words and of emoji: they only choose the form of a glyph
_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""The text with everything escaped, such as ``\x1b``, that a terminal obeys rather than shows.

    These are the control characters (C0, DEL, C1) but for newline and tab, what changes the direction of text
    or has no width (Unicode's category Cf but for the two joiners), line and paragraph separators, and
    surrogates, which no encoding has.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(map(_escaped, text))


def one_line(text: str) -> str:
    """`visible` text with each run of white space as one blank."""
    return visible(" ".join(text.split()))


def _escaped(character: str) -> str:
    if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _OBEYED:
        return character
    return character.encode("unicode_escape").decode("ascii")
