"""Compares ETS with REBASE on the real model: resident KV, accuracy, speed.

It covers both cost models of a node, and both allocations of the width.

`python -m benches.search_comparison` takes the default problems in groups that fill a batch. On each, REBASE
and ETS with the per-node and the per-token cost search from the same seed, one at a time on the same decoder.
Their order rotates between groups, so that a drift of the machine's speed affects all alike. Each search is
saved when it ends: a later call with the same --json continues after an interruption.

A width's lambda_d comes from the paper's code. lambda_b, the cluster threshold and the lengths are ours,
chosen on the 16 problems after the hundred that are measured. The paper's lambda_b = 1 and 0.05 give 0.95
clusters per leaf on the default model's hidden states and keep nearly all leaves (1.07x less KV); with steps
shorter than a page of 16 tokens, a search holds mostly the last page of each branch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.cli.problems import Settings, make_prompt
from tts_decode.cli.scorers import ScorerOf
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.records.record_file import RecordFile, read_records
from tts_decode.search import STRATEGIES, SearchResult
from tts_decode.select import ALLOCATIONS, vote
from tts_decode.select.statistics import geometric_mean_ratio, paired_proportion_difference, wilson_interval
from tts_decode.tasks import Task, default_tasks, final_answer

Record = dict[str, Any]

LAMBDA_D = {16: 1.5, 64: 1.4, 256: 1.45}  # width -> lambda_d
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rebase": ("rebase", {}),
    "ets, per node": ("ets", {"node_cost": "node"}),
    "ets, per token": ("ets", {"node_cost": "token"}),
}
# "published rebase" and so on: each ETS is compared with the REBASE of its own allocation.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{allocation} {kind}": (name, options | {"allocation": allocation})
    for allocation in ALLOCATIONS
    for kind, (name, options) in _KINDS.items()
}
_SCHEMA = "search-comparison"
MEANS = ("mean_bytes", "peak_bytes", "ets_kv_tokens", "tokens", "nodes")


RESULTS = Path(__file__).parent / "results/search_comparison.jsonl"
JSON = RESULTS.with_suffix(".json")


@dataclass(frozen=True)
class Comparison:
    """What is searched and how. problems: width:problems, with commas."""

    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    problems: str = "16:100,64:40,256:10"
    scorer: str = "mean_probability"
    lambda_b: float = 2.0
    cluster_threshold: float = 0.2
    seed: int = 0
    temperature: float = 1.0
    max_tokens: int = 256
    max_step_tokens: int = 16
    parallel: int = 256

    def counts(self) -> dict[int, int]:
        """Of each width the problems."""
        pairs = (pair.split(":") for pair in self.problems.split(","))
        counts = {int(width): int(count) for width, count in pairs}
        if not counts.keys() <= LAMBDA_D.keys() or min(counts.values()) < 1:
            raise typer.BadParameter(
                f"--problems: got {self.problems}, expected widths of {', '.join(map(str, LAMBDA_D))}"
            )
        return counts

    def prices(self) -> dict[str, float]:
        return {"lambda_b": self.lambda_b, "cluster_threshold": self.cluster_threshold}

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            self.temperature,
            seed=self.seed,
            stop=("\n",),
            max_tokens=self.max_tokens,
            max_step_tokens=self.max_step_tokens,
        )

    def about(self, dtype: str) -> Record:
        """The header of the file of its searches. dtype: what the model is in."""
        return {
            "model": self.model,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "scorer": self.scorer,
            "sampling": {"temperature": self.temperature, "seed": self.seed, "stop": "\n"},
            "max_tokens": self.max_tokens,
            "max_step_tokens": self.max_step_tokens,
            **self.prices(),
            "lambda_d": LAMBDA_D,
            "parallel": self.parallel,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }


class Study:
    """The searches of one setting: those in the file, and those that are still to be run."""

    def __init__(self, path: Path, settings: Record) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = RecordFile(path, _SCHEMA, 1, resume=True, error=typer.BadParameter)
        self.records = self._file.records
        expected = json.loads(json.dumps(settings))
        if self._file.header is None:
            self._file.write(expected)
        elif {name: self._file.header.get(name) for name in expected} != expected:
            self._file.close()
            raise typer.BadParameter(f"{path} is of other settings; remove it, or give another --json")

    def find(self, **key: Any) -> list[Record]:
        return [record for record in self.records if all(record[k] == v for k, v in key.items())]

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._file.write(record)

    def close(self) -> None:
        self._file.close()


async def search(
    decoder: TreeDecoder,
    task: Task,
    width: int,
    variant: str,
    settings: Settings,
    scorer: str,
    prices: dict[str, float],
) -> Record:
    name, options = VARIANTS[variant]
    if name == "ets":
        options = options | prices | {"lambda_d": LAMBDA_D[width]}
    strategy = STRATEGIES[name]
    root = await decoder.root(make_prompt(task.prompt, decoder, settings), settings.sampling)
    try:
        scored = ScorerOf(scorer).argument(strategy, task, decoder)
        result: SearchResult = await strategy(root, n=width, **options, **scored)
    finally:
        root.release()
    assert task.verify is not None
    complete = [c for c in result.candidates if c.complete]
    answers = [final_answer(c.text, task.answer) or None for c in complete]
    votes = vote(answers, [max(c.score or 0.0, 0.0) for c in complete])  # weighted, as the paper's
    stats = result.stats
    return {
        "width": width,
        "task": task.name,
        "variant": variant,
        "solved": task.verify(result.answer) >= 0.99,
        "vote_solved": bool(votes) and task.verify(next(iter(votes))) >= 0.99,
        "found": any(task.verify(c.text) >= 0.99 for c in result.candidates),
        "mean_bytes": stats.mean_bytes,
        "peak_bytes": stats.peak_bytes,
        "tokens": stats.generated_tokens,
        "seconds": stats.seconds,
        "nodes": len(result.tree),
        "selections": len(stats.selections),
        "live": sum(selection.width for selection in stats.selections),
        "kept": sum(selection.kept for selection in stats.selections),
        "ets_kv_tokens": stats.kv_tokens,
        "date": date.today().isoformat(),
    }


def summary(records: Sequence[Record], parallel: int) -> list[Record]:
    """A row for each width and variant, with intervals over the problems that all variants have done, and for
    speed over the groups that ran side by side."""
    rows = []
    for width in dict.fromkeys(record["width"] for record in records):
        found = {
            variant: {r["task"]: r for r in records if r["width"] == width and r["variant"] == variant}
            for variant in VARIANTS
        }
        first = next(iter(found.values()))
        tasks = [task for task in first if all(task in done for done in found.values())]
        if not tasks:
            continue
        group = max(1, parallel // width)
        for variant, done in found.items():
            ours = [done[task] for task in tasks]
            base = [found[base_of(variant)][task] for task in tasks]
            solved = sum(record["solved"] for record in ours)
            row: Record = {
                "width": width,
                "variant": variant,
                "problems": len(tasks),
                "accuracy": wilson_interval(solved, len(tasks)).to_dict(),
                "vote_accuracy": _mean([r["vote_solved"] for r in ours]),
                "found": _mean([r["found"] for r in ours]),
                **{name: _mean([r[name] for r in ours]) for name in MEANS},
                "tokens_per_second": _mean(_speeds(ours, group)),
                "kept": sum(r["kept"] for r in ours) / max(1, sum(r["live"] for r in ours)),
            }
            # As gains: how many times less memory, or more speed, than the base.
            for name in ("mean_bytes", "peak_bytes", "ets_kv_tokens"):
                # ets_kv_tokens is 0 where all answers end with their first step
                pair = [[max(float(record[name]), 1.0) for record in side] for side in (base, ours)]
                row[f"{name}_gain"] = geometric_mean_ratio(*pair).to_dict()
            speeds = geometric_mean_ratio(_speeds(ours, group), _speeds(base, group))
            row["tokens_per_second_gain"] = speeds.to_dict()
            for name in ("solved", "vote_solved"):
                row[f"{name}_difference"] = paired_proportion_difference(
                    [float(r[name]) for r in ours], [float(r[name]) for r in base]
                ).to_dict()
            rows.append(row)
    return rows


def base_of(variant: str) -> str:
    """The REBASE that it is compared with."""
    return f"{variant.split()[0]} rebase"


def _speeds(records: Sequence[Record], group: int) -> list[float]:
    """Tokens a second of each group of searches, which began together."""
    groups = [records[i : i + group] for i in range(0, len(records), group)]
    return [sum(r["tokens"] for r in side) / max(r["seconds"] for r in side) for side in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(rows: Sequence[Record]) -> str:
    """Markdown; gains and differences are against REBASE of the same allocation, with intervals of 95 %."""
    head = ["width", "search", "problems", "solved", "difference, points", "by vote", "mean KV, MiB", "gain"]
    head += ["ETS's count of KV, gain", "tokens/s", "gain", "kept leaves"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        is_base = row["variant"] == base_of(row["variant"])
        cells = [
            str(row["width"]),
            row["variant"],
            str(row["problems"]),
            f"{row['accuracy']['value']:.0%} ({row['accuracy']['low']:.0%} to {row['accuracy']['high']:.0%})",
            "" if is_base else _points(row["solved_difference"]),
            f"{row['vote_accuracy']:.0%}"
            + ("" if is_base else f", {_points(row['vote_solved_difference'])}"),
            f"{row['mean_bytes'] / 2**20:.2f}",
            times(row["mean_bytes_gain"]),
            times(row["ets_kv_tokens_gain"]),
            f"{row['tokens_per_second']:.0f}",
            times(row["tokens_per_second_gain"]),
            f"{row['kept']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _points(interval: Record) -> str:
    value, low, high = (f"{100 * interval[name]:+.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def times(interval: Record) -> str:
    if interval["low"] is None:
        return f"{interval['value']:.2f}x"
    return f"{interval['value']:.2f}x ({interval['low']:.2f} to {interval['high']:.2f})"


def measure(comparison: Comparison, path: Path) -> tuple[Record, list[Record]]:
    """Settings and searches of a comparison. Those that the file lacks are run; without any, no model is
    loaded."""
    total = len(VARIANTS) * sum(comparison.counts().values())
    if not path.exists() or len(known(comparison, path)[1]) < total:
        _run(comparison, path)
    return known(comparison, path)


def known(comparison: Comparison, path: Path) -> tuple[Record, list[Record]]:
    """Settings of a file, and those of the comparison's searches that it holds."""
    header, records, _ = read_records(path, _SCHEMA, 1, error=typer.BadParameter)
    counts = comparison.counts()
    tasks = [task.name for task in default_tasks(max(counts.values()))]
    searches = [record for record in records if record["task"] in tasks[: counts.get(record["width"], 0)]]
    return {key: value for key, value in header.items() if key not in ("schema", "version")}, searches


def _run(comparison: Comparison, path: Path) -> None:
    began, counts = time.perf_counter(), comparison.counts()
    tasks = default_tasks(max(counts.values()))
    settings = Settings(comparison.sampling())
    loaded, tokenizer = load_model(comparison.model, comparison.dtype)
    decoder = TreeDecoder(loaded, tokenizer)
    study = Study(path, comparison.about(str(loaded.dtype).removeprefix("torch.")))

    def run(width: int, variant: str, chosen: Sequence[Task]) -> list[Record]:
        return decoder.run_all(
            [
                search(decoder, task, width, variant, settings, comparison.scorer, comparison.prices())
                for task in chosen
            ]
        )

    run(min(counts), next(iter(VARIANTS)), tasks[:1])  # warm, outside the record
    for width, count in counts.items():
        group = max(1, comparison.parallel // width)
        for turn, first in enumerate(range(0, count, group)):
            together = tasks[first : min(first + group, count)]
            shift = turn % len(VARIANTS)
            for variant in [*VARIANTS][shift:] + [*VARIANTS][:shift]:
                if not all(study.find(width=width, task=task.name, variant=variant) for task in together):
                    for record in run(width, variant, together):
                        study.add(record)
            print(
                f"{time.perf_counter() - began:6.0f} s  width {width}: {first + len(together)} of {count}",
                file=sys.stderr,
            )
    study.close()


def main(
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
    problems: Annotated[
        str, typer.Option(help="width:problems, with commas; widths 16, 64 and 256")
    ] = "16:100,64:40,256:10",
    scorer: Annotated[str, typer.Option(help="one of tts-decode's, by name")] = "mean_probability",
    lambda_b: Annotated[float, typer.Option(help="price of KV; the paper's is 1.0")] = 2.0,
    cluster_threshold: Annotated[
        float, typer.Option(help="cosine distance within a cluster of steps; the paper's is 0.05")
    ] = 0.2,
    seed: int = 0,
    temperature: Annotated[float, typer.Option(help="of sampling; the paper's is 1.0")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="longest answer")] = 256,
    max_step_tokens: Annotated[int, typer.Option(help="longest step")] = 16,
    parallel: Annotated[
        int, typer.Option(help="branches in a batch: width 16 runs so many / 16 problems")
    ] = 256,
    json_file: Annotated[Path, typer.Option("--json", help="where results go; searches beside it")] = JSON,
) -> None:
    comparison = Comparison(
        model,
        dtype,
        problems,
        scorer,
        lambda_b,
        cluster_threshold,
        seed,
        temperature,
        max_tokens,
        max_step_tokens,
        parallel,
    )
    about, searches = measure(comparison, json_file.with_suffix(".jsonl"))
    rows = summary(searches, parallel)
    json_file.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
