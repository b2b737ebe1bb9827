"""A mermaid diagram that is one chain becomes a numbered list: pages then need no script of 3 MB."""

from __future__ import annotations

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

BLOCK = re.compile(r"^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)
NODE = re.compile(r'^\s*(\w+)\["([^"<]+)<br>([^"]+)"\]$', re.MULTILINE)
CHAIN = re.compile(r"^\s*(\w+(?: --> \w+)+)$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def replace(block: re.Match[str]) -> str:
        nodes = {name: (file, text) for name, file, text in NODE.findall(block[1])}
        chains = CHAIN.findall(block[1])
        order = chains[0].split(" --> ") if len(chains) == 1 else []
        if sorted(order) != sorted(nodes):
            raise PluginError(
                f"{page.file.src_uri}: got a diagram that is no chain of 'file<br>text' nodes; draw it as SVG"
            )
        rows = [f"{i}. `{nodes[name][0]}`: {nodes[name][1]}" for i, name in enumerate(order, 1)]
        return "\n".join(['<div class="chain" markdown>', "", *rows, "", "</div>"])

    return BLOCK.sub(replace, markdown)
