"""Makes text from outside (models, files, servers, arguments) safe to print to a terminal."""

from __future__ import annotations

import re
import unicodedata

_PLAIN = re.compile(r"[\n\t\x20-\x7e]*")
_JOINERS = "\u200c\u200d"  # in Indic and Persian words and emoji; they only select the form of a glyph
_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""Returns the text with everything escaped, as ``\x1b``, that a terminal obeys rather than shows.

    This covers the control characters (C0, DEL, C1) except newline and tab; characters that change the
    direction of text or have no width (Unicode category Cf except the two joiners); line and paragraph
    separators; and surrogates, which cannot be encoded.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(map(_escaped, text))


def one_line(text: str) -> str:
    """Returns `visible` text with each run of white space as one space."""
    return visible(" ".join(text.split()))


def _escaped(character: str) -> str:
    if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _OBEYED:
        return character
    return character.encode("unicode_escape").decode("ascii")
