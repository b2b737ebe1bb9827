"""Completions that the shell offers for options: strategies and their options, local models, choices.

Typer calls these functions while the user types. They read names from `commands.json`
(`command_table.py`): importing torch, which strategies need, would take seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import typer

TABLE = Path(__file__).with_name("commands.json")


@cache
def table() -> dict[str, Any]:
    """Returns the table that `command_table` wrote."""
    found: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def _one_of(*names: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


dtypes = _one_of("auto", "float32", "bfloat16", "float16")
weights = _one_of("auto", "file", "float32", "bfloat16", "float16", "int8", "int4")
devices = _one_of("cpu", "cuda")
kv_dtypes = _one_of("auto", "int8")
sparse_shares = _one_of("branch", "siblings", "tree")
sparse_summaries = _one_of("mean", "minmax", "quarters")


def strategies(incomplete: str) -> list[tuple[str, str]]:
    """Returns names and descriptions."""
    known = table()["strategies"]
    return [(name, about["summary"]) for name, about in known.items() if name.startswith(incomplete)]


def strategy_options(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns KEY= for each option of the strategies on the command line, or of the default ones."""
    known = table()["strategies"]
    given = ctx.params.get("strategy") or "ets"
    names = [given] if isinstance(given, str) else given
    keys = {key: None for name in names if name in known for key in known[name]["options"]}
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


def scorers(incomplete: str) -> list[str]:
    return [name for name in table()["scorers"] if name.startswith(incomplete)]


def task_formats(incomplete: str) -> list[str]:
    return [name for name in table()["task_formats"] if name.startswith(incomplete)]


def stop_when(incomplete: str) -> list[str]:
    return [name for name in table()["stop_when"] if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Returns the default model, models in the hub's cache, and .gguf files and folders that match."""
    from ..default_model import DEFAULT_MODEL

    found = [DEFAULT_MODEL, *_cached_models(), *_model_files(incomplete)]
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete)]


def _cached_models() -> Iterator[str]:
    """Yields ids in the hub's cache; reads huggingface_hub's variables, as importing it takes longer."""
    with suppress(OSError, RuntimeError):  # no such folder, or no home folder
        home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
        cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
        for folder in sorted(cache.glob("models--*")):
            yield folder.name.removeprefix("models--").replace("--", "/")


def _model_files(incomplete: str) -> Iterable[str]:
    folder = Path(incomplete if incomplete.endswith("/") else os.path.dirname(incomplete) or ".")
    before = "" if folder == Path() and not incomplete.startswith("./") else f"{folder}/"
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.suffix == ".gguf":
                yield before + path.name
            elif path.is_dir() and not path.name.startswith("."):
                yield f"{before}{path.name}/"
