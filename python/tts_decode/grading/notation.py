r"""One spelling for what LaTeX, Unicode and plain text write differently: `\dfrac`, `\left(`, `√3`, `<=`.

Answers are short by the time they get here; `equality` bounds their length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

CACHED = 2048
"""Answers whose results each of these rules caches: in a vote each is compared with many."""

_SIGNS = {
    **{
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": "\\times ",
        "\u00b7": "\\cdot ",
        "\u00f7": "/",
        "\u03c0": "\\pi ",
    },
    **{"\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u00b0": "^\\circ "},
    **{"\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ", "\u00b1": "\\pm ", "\u2205": "\\emptyset "},
    **{"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u221a": "\\sqrt ", "\u211d": "\\mathbb{R}"},
    **{"\u2220": "\\angle ", "\u25b3": "\\triangle "},
    **{"\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}"},
    **{"<=": "\\le ", ">=": "\\ge ", "!=": "\\ne ", "**": "^", "{,}": ","},
}
_RAISED = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f", "0123456789+-n"
)
_LOWERED = str.maketrans("\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089", "0123456789")
_RAISED_RUN = re.compile("[" + "".join(map(chr, _RAISED)) + "]+")
_LOWERED_RUN = re.compile("[" + "".join(map(chr, _LOWERED)) + "]+")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d)")


def _ungrouped(text: re.Match[str]) -> str:
    """Removes thousands separators from numbers. Inside brackets a comma separates values."""
    return _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text[1])


_SCALES = {
    **{"dozen": 12, "hundred": 100, "thousand": 1000},
    **{"million": 10**6, "billion": 10**9, "trillion": 10**12},
}
_SCALED = (
    r"(?<![\w.,}])(\d{1,15}(?:\.\d{1,9})?)\s*(\\text\{)?\s*"
    rf"((?:(?:{'|'.join(_SCALES)})(?![a-zA-Z])\s*)+)"
)


def _counted(text: re.Match[str]) -> str:
    """Replaces words after a number that multiply it: 3 million."""
    value = Decimal(text[1])
    for word in text[3].split():
        value *= _SCALES[word]
    return f"{value:f}{text[2] or ' '}"


_TOKEN = r"(?:\d|[a-zA-Z]|\\pi(?![a-zA-Z]))"  # an argument of \\frac without braces

_SAME: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?)(?![a-zA-Z])\s*\.?(?=[\s\S])", ""),
        (r"\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
        (r",\s*\\!\s*", ","),  # 11,\! 100
        (r"\\!", ""),
        (r"(?<!\\)\\(?:[,;: ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~", " "),
        (r"(?<!\\)\{\s*([^{}]*?)\s*\\choose(?![a-zA-Z])\s*([^{}]*?)\s*\}", r"\\binom{\1}{\2}"),
        (r"(?<!\\)\{\s*([^{}]*?)\s*\\over(?![a-zA-Z])\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (rf"\\frac\s*({_TOKEN})\s*(?={_TOKEN}|\{{)", r"\\frac{\1}"),
        (rf"\\frac\s*(\{{[^{{}}]*\}})\s*({_TOKEN})", r"\\frac\1{\2}"),
        (r"\\(?:mathrm|mathit|text)\s*\{\s*([ie])\s*\}", r"\1"),
        (
            r"\\(?:textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mbox|boldsymbol|bm|rm|bf)\s*\{",
            r"\\text{",
        ),
        (r"\\text\{\s*([+-]?\d[\d.,]*)\s*\}", r"\1"),
        (r"\\frac\{\\text\{([^{}]*)\}\}\{\\text\{([^{}]*)\}([^{}]*|\^\{\d\})\}", r"\\text{\1/\2}\3"),
        (r"\\Bbb(?![a-zA-Z])", r"\\mathbb"),
        (r"\\mathbb\s*([A-Z])(?![a-zA-Z])|\\([CNQRZ])(?![a-zA-Z])", r"\\mathbb{\1\2}"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|"),
        (r"\\([lgn]e)q(?:slant)?(?![a-zA-Z])", r"\\\1 "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"\\(?:degree|textdegree)(?![a-zA-Z])", r"^\\circ"),
        (r"\^\s*\{\s*\\circ\s*\}", r"^\\circ"),
        (r"(?<!\\)%", r"\\%"),
        (r"(?<![\\a-zA-Z])sqrt(?![a-zA-Z])", r"\\sqrt"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\[[^\[\]{}]*\])?\s*([0-9]+|[a-zA-Z])", r"\\sqrt\1{\2}"),
        (r"(?<![\\a-zA-Z])(?:pi|Pi)(?![a-zA-Z])", r"\\pi "),
        (r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\*", r"\\cdot "),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
        (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
        (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?!\w)", r"\1\\cdot 10^{\2}"),
        (r"(?<![\d.,])(-?\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}", r"\\repeating{\1}{\2}{\3}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-?\d+|[a-zA-Z])", r"^{\1}"),
        (r"_\s*([0-9a-zA-Z])", r"_{\1}"),
        (r"^([^(\[{]*)$", _ungrouped),
        (_SCALED, _counted),
        (r"(?:\\text\{\s*\}\s*)+$", ""),
        (r"(?<=[\d)])\s+squared\s*$", "^{2}"),
        (r"(?<=[\d)])\s+cubed\s*$", "^{3}"),
        (r"(?<=[\d)])\s+factorial\s*$", "!"),
    )
]
_LAST_SPACE = re.compile(r"(?<!\\)\\$")  # in "3\\ ", once the space after the backslash is stripped
_REPEATING = re.compile(r"\\repeating\{(-?)(\d*)\}\{(\d*)\}\{(\d+)\}")
_MATH_MARKS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


@lru_cache(maxsize=CACHED)
def normalised(text: str) -> str:
    r"""Returns the answer in one notation: without surrounding math marks, `\boxed` and a final full stop."""
    text = text.strip()
    before = None
    while text != before:
        before = text
        text = _LAST_SPACE.sub("", text.strip().rstrip(".,;").strip("* "))
        for left, right in _MATH_MARKS:
            inner = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and inner and "$" not in inner:
                text = inner
        if text.startswith("\\boxed{") and text.endswith("}"):
            text = text[len("\\boxed{") : -1]
    text = _RAISED_RUN.sub(lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{run[0].translate(_LOWERED)}}}", text)
    for sign, written in _SIGNS.items():
        text = text.replace(sign, written)
    for pattern, replacement in _SAME:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", _REPEATING.sub(_fraction, text)).strip()


@lru_cache(maxsize=CACHED)
def spelling(text: str) -> str:
    r"""Returns a key that is equal for two normalised answers with the same spelling, whatever they mean.

    Spaces count only between letters of words, or between a command and a letter.
    """
    text = re.sub(r"\s+(?![a-zA-Z0-9])|(?<![a-zA-Z0-9])\s+", "", text)
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", text)


def _fraction(decimal: re.Match[str]) -> str:
    """Returns a repeating decimal as a fraction: 0.1(6) is (16 - 1) / 90."""
    sign, whole, fixed, repeated = decimal.groups()
    top = int(whole + fixed + repeated) - int(whole + fixed or "0")
    return f"{sign}\\frac{{{top}}}{{{'9' * len(repeated) + '0' * len(fixed)}}}"
