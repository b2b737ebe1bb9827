"""The measured tables of docs/strategies.md: the settings and the bench of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from tts_decode.cli.machine import device_name
from tts_decode.default_model import DEFAULT_MODEL

from benches import (
    all_strategies,
    atts_pair,
    coverage_curve,
    default_problems,
    fit_policy,
    search_comparison,
    st_bon_kv,
)
from benches.strategies import texts
from tts_kernels import _core

Record = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A table that is measured at once.

    measure: called with the settings, returns the figures. text: of a record, Markdown.
    """

    settings: Record
    measure: Callable[..., Record]
    text: Callable[[Record], str]

    def record(self) -> Record:
        """Measures. Date, versions, kind of CPU, settings and figures, as JSON holds them."""
        made = {
            "settings": self.settings,
            "figures": self.measure(**self.settings),
            "date": date.today().isoformat(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "cpu": f"{device_name('cpu')}, {_core.cpu_isa()}{_threads()}",
        }
        known: Record = json.loads(json.dumps(made))
        return known

    def fits(self, record: Record) -> bool:
        """Whether the record is of these settings."""
        return bool(record["settings"] == json.loads(json.dumps(self.settings)))


@dataclass(frozen=True)
class Grown:
    """A table that takes hours. Its bench keeps a file of its own, to which it adds what the file lacks.

    measure: does so, and returns what the file then holds. read: returns that without measuring.
    """

    file: Path
    measure: Callable[[], Record]
    read: Callable[[], Record]
    text: Callable[[Record], str]


def _threads() -> str:
    """Returns how many threads compute, if they are fewer than the cores."""
    threads = torch.get_num_threads()
    return "" if threads >= (os.cpu_count() or 1) else f", {threads} thread{'s' * (threads > 1)}"


def search_shares(*, n: int, limit: int, model: str, dtype: str) -> Record:
    """The share of the time that a search spends outside the model and the draw of tokens, as `tts-decode
    bench search` tells it of its default strategies."""
    command = [sys.executable, "-m", "tts_decode", "bench", "search", "-n", str(n), "--limit", str(limit)]
    command += ["--model", model, "--dtype", dtype, "--json"]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    seconds = {search["strategy"]: search["seconds"] for search in told["searches"]}
    return {
        "outside": {
            name: round(1 - (s["model"] + s["sampling"]) / s["wall"], 4) for name, s in seconds.items()
        }
    }


_MODEL = {"model": DEFAULT_MODEL, "dtype": "bfloat16"}
_SAMPLES = {"temperature": 0.8, "seed": 0}

MEASURED = {
    "search_cost": Measured(
        {"n": 64, "limit": 3, "model": DEFAULT_MODEL, "dtype": "float32"}, search_shares, texts.search_cost
    ),
    "st_bon_kv": Measured(
        _MODEL | {"n": 16, "problems": 4, "lengths": [64, 128, 256], "temperature": 0.8},
        st_bon_kv.measure,
        texts.st_bon,
    ),
    "atts_pair": Measured(
        _SAMPLES
        | {"draft": DEFAULT_MODEL, "target": None, "dtype": "bfloat16", "problems": 12, "n": 4}
        | {"num_calibration": 8, "max_tokens": 48, "max_step_tokens": 16},
        atts_pair.measure,
        texts.atts,
    ),
    "fit_policy": Measured(
        _MODEL
        | _SAMPLES
        | {"problems": 20, "n": 8, "num_probes": 4, "max_tokens": 64, "max_step_tokens": 32},
        fit_policy.measure,
        texts.policy,
    ),
    "coverage_curve": Measured(
        _MODEL | _SAMPLES | {"n": 32, "problems": 12, "max_tokens": 64},
        coverage_curve.measure,
        texts.coverage,
    ),
    "default_problems": Measured(
        _MODEL | _SAMPLES | {"n": 8, "problems": 24, "max_tokens": 96},
        default_problems.measure,
        texts.problems,
    ),
}


def _searches(found: tuple[Record, list[Record]]) -> Record:
    return {"settings": found[0], "searches": found[1]}


_ETS = search_comparison.Comparison(dtype="float32", problems="16:16")

GROWN = {
    "strategies": Grown(
        all_strategies.RESULTS,
        lambda: all_strategies.measure(all_strategies.SETTINGS, all_strategies.RESULTS),
        lambda: json.loads(all_strategies.RESULTS.read_text(encoding="utf-8")),
        texts.strategies,
    ),
    "search_comparison": Grown(
        search_comparison.RESULTS,
        lambda: _searches(search_comparison.measure(_ETS, search_comparison.RESULTS)),
        lambda: _searches(search_comparison.known(_ETS, search_comparison.RESULTS)),
        texts.search_comparison,
    ),
}
