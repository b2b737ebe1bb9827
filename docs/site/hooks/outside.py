"""Links from a page to files outside docs/ work in the site: the files come along.

Markdown files of the top folder are pages. Of a source file a page shows the text, of a folder the names in
it. Pictures and data are copied as they are.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[3]
TOP_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LANGUAGES = {
    ".py": "python",
    ".h": "cpp",
    ".cpp": "cpp",
    ".cu": "cpp",
    ".cuh": "cpp",
    ".toml": "toml",
    "": "text",
}
COPIED = {".svg", ".png", ".json", ".jsonl"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in TOP_PAGES:
        add(files, config, name, (ROOT / name).read_text(encoding="utf-8"))
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    add(files, config, "LICENSE.md", f"# Licence\n\n```text\n{licence}```\n")
    for file in list(files.documentation_pages()):
        if file.src_uri.endswith(".md"):
            for target in outside(file.content_string, base(file.src_uri)):
                add_target(files, config, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = page.file.src_uri
    here = base(source)

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, match[2]))
        if path == "docs" or path.startswith("../"):
            return match[0]
        target = path.removeprefix("docs/") if path.startswith("docs/") else place(path)
        relative = posixpath.relpath(target, posixpath.dirname(source) or ".")
        return f"{match[1]}{relative}{match[3] or ''}{match[4]}"

    return outside_of_code(markdown, lambda text: LINK.sub(replace, text))


def base(source: str) -> str:
    """Folder of the repository that a page's links start from."""
    return "." if source in TOP_PAGES else posixpath.dirname(f"docs/{source}")


def outside(markdown: str, here: str) -> set[str]:
    """Paths in the repository, not in docs/, that a page links to."""
    links = [match[2] for match in LINK.finditer(FENCE.sub("", markdown))]
    paths = {posixpath.normpath(posixpath.join(here, link)) for link in links}
    return {path for path in paths if not path.startswith(("docs/", "../")) and (ROOT / path).exists()}


def place(path: str) -> str:
    """Where the site keeps a file of the repository, beside the pages of docs/."""
    if path in TOP_PAGES:
        return path
    if path == "README.md":
        return "index.md"
    if path == "LICENSE":
        return "LICENSE.md"
    return f"source/{path}" if Path(path).suffix in COPIED else f"source/{path}.md"


def add_target(files: Files, config: MkDocsConfig, path: str) -> None:
    target, file = place(path), ROOT / path
    if files.get_file_from_path(target) is not None:
        return
    if target == f"source/{path}":
        files.append(File.generated(config, target, abs_src_path=str(file)))
        return
    if file.is_dir():
        names = sorted(f"{child.name}/" if child.is_dir() else child.name for child in file.iterdir())
        body = "".join(f"* `{name}`\n" for name in names if name[0] not in "._")
    else:
        language = LANGUAGES.get(file.suffix, "text")
        body = f"``````{language}\n{file.read_text(encoding='utf-8')}``````\n"
    front = "---\nsearch:\n  exclude: true\nhide: [toc]\n---\n"
    add(files, config, target, f"{front}# `{path}` {{ .path }}\n\n{body}")


def add(files: Files, config: MkDocsConfig, uri: str, content: str) -> None:
    file = File.generated(config, uri, content=content)
    if uri.startswith("source/"):
        file.inclusion = file.inclusion.NOT_IN_NAV
    files.append(file)


def outside_of_code(markdown: str, change) -> str:
    """`change` of all text that is in no fenced block."""
    parts, end = [], 0
    for block in FENCE.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(markdown[end:])])
