"""`tts-decode view`: shows saved searches as one HTML page, written to a file or served."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..core.visible import visible
from ..errors import ResultFileError
from ..search import read_json
from ..view import MOST_BYTES, Page, Shown, make_page
from .display import Screen, mib
from .errors import CommandError, UsageError
from .filled import filled
from .page_server import serve_page
from .saving import holds_saved, read_saved

_LAST_PORT = 65535


@filled
def view(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Output of --save FOLDER of search, compare or sweep: the folder, or a NAME.jsonl in it; "
            "or a .json from write_json.",
            show_default=False,
        ),
    ],
    problem: Annotated[
        list[int],
        typer.Option("--problem", "-p", help="Only this problem, counted from 0; may be repeated."),
    ] = [],  # noqa: B006
    strategy: Annotated[
        list[str], typer.Option("--strategy", "-s", help="Only this strategy; may be repeated.")
    ] = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="File of the page. Default: view.html in the folder, or next to the file under its name.",
            show_default=False,
        ),
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Open the page in the browser. Default: if there is a display.",
            show_default=False,
        ),
    ] = None,
    serve: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Instead of writing the page, serve it to this machine at 127.0.0.1 until Ctrl-C; 0: any "
            "free port.",
            show_default=False,
        ),
    ] = None,
    max_mib: Annotated[
        int,
        typer.Option(help="Most JSON of trees in the page; it holds the first trees that fit."),
    ] = MOST_BYTES >> 20,
) -> None:
    """Show saved searches in the browser: trees, texts, probabilities, KV over time.

    The page is one file that needs no network: it can be kept, sent and opened anywhere. A run that is still
    being written can be shown too.

    Examples:

      tts-decode search "What is 3 + 4?" --save run

      tts-decode view run

      tts-decode view run -s ets -p 3 -p 7 --out two.html --no-open

      tts-decode view run --serve 8080

    On another machine: serve there, forward the port (ssh -L 8080:127.0.0.1:8080 HOST), open
    http://127.0.0.1:8080/ here.
    """
    if serve is not None and not 0 <= serve <= _LAST_PORT:
        raise UsageError(f"--serve: got {serve}, expected a port from 0 to {_LAST_PORT}")
    if max_mib < 1:
        raise UsageError(f"--max-mib: got {max_mib}, expected at least 1")
    searches = _chosen(_read(run), problem, strategy)
    page = make_page(searches, title=visible(run.resolve().name), most_bytes=max_mib << 20)
    if page.left_out:
        print(
            f"tts-decode: {page.left_out} of {len(searches)} searches are listed without their trees, as the "
            f"page holds {max_mib} MiB at most; choose with --problem and --strategy, or raise --max-mib",
            file=sys.stderr,
        )
    wanted = _has_display() if open_page is None else open_page
    if out is not None or serve is None:
        file = out or (run / "view.html" if run.is_dir() else run.with_suffix(".html"))
        _write(file, page)
        if wanted and serve is None:
            _open(file.resolve().as_uri())
    if serve is not None:
        serve_page(page.html, serve, ready=_open if wanted else None)


def _read(run: Path) -> list[Shown]:
    if not run.exists():
        raise UsageError(
            f"RUN: got {run}, which does not exist; expected a folder of --save, or a result file"
        )
    if run.is_dir():
        saved = sorted(file for file in run.glob("*.jsonl") if holds_saved(file))
        if not saved:
            raise CommandError(
                f"{run}: holds no NAME.jsonl of --save; give the folder that --save named, or a result file"
            )
        return [search for file in saved for search in read_saved(file)]
    if run.suffix == ".jsonl":
        return read_saved(run)
    try:
        result = read_json(run)
    except ResultFileError as cause:
        raise CommandError(str(cause)) from cause
    return [Shown(result.strategy, result)]


def _chosen(searches: list[Shown], problems: list[int], strategies: list[str]) -> list[Shown]:
    """Returns the searches of the given problems and strategies; none given means all."""
    known = {search.strategy: None for search in searches}
    for name in strategies:
        if name not in known:
            raise UsageError(f"--strategy: got {name!r}, but the run has {', '.join(known) or 'none'}")
    indices = {search.problem.index for search in searches}
    for index in problems:
        if index not in indices:
            raise UsageError(
                f"--problem: got {index}, but the run has {len(indices)}, from {min(indices, default=0)} to "
                f"{max(indices, default=0)}"
            )
    found = [
        search
        for search in searches
        if (not strategies or search.strategy in strategies)
        and (not problems or search.problem.index in problems)
    ]
    if not any(search.result for search in found):
        raise CommandError("no search to show: none of those chosen has come to a result")
    return found


def _write(file: Path, page: Page) -> None:
    try:
        file.write_text(page.html, encoding="utf-8")
    except OSError as cause:
        raise CommandError(f"--out: {file} cannot be written: {cause.strerror}; give another file") from cause
    size = f"{mib(file.stat().st_size)} MiB"
    what = "1 search" if page.searches == 1 else f"{page.searches} searches"
    Screen().print(f"{file}: {what}, {size}", soft_wrap=True)


def _open(address: str) -> None:
    if not webbrowser.open(address):
        print(f"tts-decode: found no browser to open; open {address} in one", file=sys.stderr)


def _has_display() -> bool:
    """Whether a browser would open a window, rather than run in this terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
