"""Formulas become MathML while the site is built: browsers draw it without scripts or fonts of ours.

A formula within a line keeps the punctuation behind it on that line.
"""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>([,.;:]?)', re.DOTALL)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def replace(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        formula = convert(html.unescape(match[3]).strip(), display=display)
        if display == "block":
            return f'<div class="formula">{formula}</div>{match[4]}'
        return f'<span class="whole">{formula}{match[4]}</span>'

    return FORMULA.sub(replace, content)
