"""A notebook in docs/notebooks is a page: its texts, its code, and what its cells printed."""

from __future__ import annotations

import json

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            name = file.src_uri.rpartition("/")[2]
            files.append(File.generated(config, page, content=markdown_of(file.content_string, name)))
    return files


def markdown_of(notebook: str, name: str) -> str:
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            printed = "".join(output.get("text") or output["data"]["text/plain"])
            parts.append(f"```{{.text .output}}\n{printed.rstrip()}\n```")
    title, _, rest = "\n\n".join(parts).partition("\n\n")
    return f"{title}\n\n[The notebook as a file]({name}){{ download }}\n\n{rest}\n"
