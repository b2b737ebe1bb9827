"""Compares decoding with other engines: python -m benches.decode_comparison

Every engine prefills the same random prompt, then decodes branches that share it, at temperature 1 and
without an end. For each prompt and number of branches, all settings of an engine are tried, and the fastest
is measured. The engines stay loaded and take turns, so that other load on the machine affects all alike. An
engine too slow to draw all tokens draws as many as fit into a share of the time. One that fails is reported
with the reason, and returns at the next prompt length; one that is not installed is reported.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tts_decode.bench.plots import lines
from tts_decode.cli.info import collect
from tts_decode.model.loading import resolve_dtype

from benches.peers.engines import ENGINES, USUAL, USUAL_BFLOAT16, Engine, PeerError, Process, install
from benches.peers.models import prepare

Record = dict[str, Any]

ROOT = Path(__file__).parents[1]
LOAD_SECONDS = 300.0
TRIED_STEPS = 4
HOPELESS = 3.0
PATIENCE = 20.0  # times the seconds that a measurement may take: then it is ended


def install_all(environments: set[str], folder: Path, failed: dict[str, str]) -> None:
    for environment in sorted(environments):
        print(f"installing {environment}", file=sys.stderr)
        try:
            install(environment, folder)
        except PeerError as error:
            failed[environment] = str(error)


@contextmanager
def closing() -> Iterator[dict[str, Process]]:
    """Processes, of which those end that are in it at last."""
    processes: dict[str, Process] = {}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.close()


def start(
    processes: dict[str, Process],
    engines: Mapping[str, Engine],
    paths: Mapping[str, Path],
    folder: Path,
    options: Record,
    failed: dict[str, str],
    limit: float = LOAD_SECONDS,
) -> None:
    """Starts those that are not in `processes` and can start. folder: of the environments. options: for all
    adapters."""
    for name, engine in engines.items():
        if name in processes or name in failed:
            continue
        form = engine.form
        if form not in paths:
            failed[name] = f"the model does not come as {form}"
            continue
        print(f"loading {name}", file=sys.stderr)
        try:
            model = {"model": str(paths[form])}
            processes[name] = Process(engine, folder, model | options, limit)
        except PeerError as error:
            failed[name] = str(error)


def tokens_for(step: float, most: int, seconds: float) -> int:
    """Decode steps to measure: `most`, or what fits into `seconds`, at least 2."""
    return max(2, min(most, int(seconds / step)))


Setting = tuple[int, int]  # tokens of the prompt, branches
Measure = Callable[[Process, list[int], int, int, float], Record]  # as Process.measure


def engine_of(name: str) -> str:
    """ "OpenVINO" of "OpenVINO, F16, u8 KV"."""
    return name.partition(",")[0]


_source = random.Random(0)


def random_prompt(tokens: int) -> list[int]:
    """Another one each time, so that none is cached."""
    return [_source.randrange(1000, 40000) for _ in range(tokens)]


def try_all(
    processes: dict[str, Process],
    setting: Setting,
    seconds: float,
    failed: dict[str, str],
    measure: Measure = Process.measure,
) -> list[Record]:
    """What a few steps of each process take. One that is HOPELESS times slower than another of the same
    engine ends and leaves `processes`, as one does that fails: more branches only ask more of it. `start`
    brings it back."""
    prompt, branches = setting
    ids = random_prompt(prompt)
    tried: list[Record] = []
    best: dict[str, float] = {}
    for name, process in [*processes.items()]:
        try:
            took = measure(process, ids, branches, TRIED_STEPS, PATIENCE * seconds)
        except PeerError as error:
            failed[f"{name}, {prompt} tokens, {branches} branches"] = str(error)
            processes.pop(name).close()
            continue
        step = took["decode"] / TRIED_STEPS
        if step == 0:
            continue
        engine = engine_of(name)
        best[engine] = min(step, best.get(engine, step))
        tried.append({"engine": engine, "setting": name, "prompt": prompt, "branches": branches})
        tried[-1] |= {"step_seconds": step, "prefill_seconds": took["prefill"]}
    for record in tried:
        if record["step_seconds"] > HOPELESS * best[record["engine"]]:
            processes.pop(record["setting"]).close()
    return tried


def measure_fastest(
    processes: dict[str, Process],
    tried: list[Record],
    tokens: int,
    rounds: int,
    seconds: float,
    failed: dict[str, str],
    measure: Measure = Process.measure,
) -> list[Record]:
    """What each round takes of each engine's fastest process of those that were tried, in turn."""
    fastest: dict[str, Record] = {}
    for record in sorted(tried, key=lambda record: record["step_seconds"]):
        fastest.setdefault(record["engine"], record)
    measured: list[Record] = [
        {key: record[key] for key in ("engine", "setting", "prompt", "branches")}
        | {"tokens": tokens_for(record["step_seconds"], tokens, seconds), "runs": []}
        for record in tried
        if fastest[record["engine"]] is record
    ]
    for _ in range(rounds):
        for record in [*measured]:
            prompt, branches, name = record["prompt"], record["branches"], record["setting"]
            ids = random_prompt(prompt)
            try:
                run = measure(processes[name], ids, branches, record["tokens"], PATIENCE * seconds)
            except PeerError as error:
                failed[f"{name}, {prompt} tokens, {branches} branches"] = str(error)
                processes.pop(name).close()
                measured.remove(record)
            else:
                if run["decode"] > 0:
                    record["runs"].append(run)
    for record in measured:
        if not record["runs"]:
            name = f"{record['setting']}, {record['prompt']} tokens, {record['branches']} branches"
            failed[name] = "its runs of one token differed as much as its decoding took"
    return [record | summary(record) for record in measured if record["runs"]]


def summary(record: Record) -> Record:
    speeds = [record["branches"] * record["tokens"] / run["decode"] for run in record["runs"]]
    return {
        "tokens_per_second": statistics.median(speeds),
        "spread": [min(speeds), max(speeds)],
        "prefill_seconds": statistics.median(run["prefill"] for run in record["runs"]),
        "growth_bytes": max(run["growth"] for run in record["runs"]),
    }


def table(records: list[Record], tried: list[Record], prompt: int) -> str:
    """Markdown: tokens/s by engine and number of branches, the shortest prefill of any of its settings, and
    the most memory that those took which were measured."""
    rows = [r for r in records if r["prompt"] == prompt]
    widths = sorted({r["branches"] for r in rows})
    head = ["engine", *(f"{width}" for width in widths), "prefill, s", "growth, MiB"]
    text = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name in dict.fromkeys(r["engine"] for r in rows):
        mine = {r["branches"]: r for r in rows if r["engine"] == name}
        cells = [f"{mine[width]['tokens_per_second']:.0f}" if width in mine else "" for width in widths]
        prefills = [r for r in [*mine.values(), *tried] if (r["engine"], r["prompt"]) == (name, prompt)]
        prefill = min(r["prefill_seconds"] for r in prefills)
        growth = max(r["growth_bytes"] for r in mine.values()) / 2**20
        text.append(f"| {' | '.join([name, *cells, f'{prefill:.2f}', f'{growth:.0f}'])} |")
    return "\n".join(text)


def plot(records: list[Record], prompt: int, path: Path) -> None:
    rows = [r for r in records if r["prompt"] == prompt]
    widths = sorted({r["branches"] for r in rows})
    curves = {
        name: [r["tokens_per_second"] for r in rows if r["engine"] == name]
        for name in dict.fromkeys(r["engine"] for r in rows)
        if len([r for r in rows if r["engine"] == name]) == len(widths)
    }
    lines(path, widths, curves, ("branches", f"tokens/s after {prompt:,} shared tokens"))


def main(
    engine: Annotated[list[str] | None, typer.Option(help="Only these settings.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All settings, not only the strongest of each engine.")
    ] = False,
    model: Annotated[str, typer.Option(help="smollm2, or wide: 32/8/128 heads, 8 layers.")] = "smollm2",
    prompts: Annotated[str, typer.Option(help="Tokens of the prompt, with commas.")] = "512,2048",
    branches: Annotated[str, typer.Option(help="How many, with commas.")] = "1,8,32,64",
    tokens: Annotated[int, typer.Option(help="Of each branch, at most.")] = 32,
    rounds: int = 2,
    seconds: Annotated[float, typer.Option(help="That one measurement may take, about.")] = 3.0,
    setup: Annotated[bool, typer.Option(help="Install the peers first.")] = False,
    folder: Annotated[Path, typer.Option(help="Of the peers' environments and models.")] = ROOT
    / "build/peers",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the results go.")] = None,
) -> None:
    usual = USUAL + USUAL_BFLOAT16 * (resolve_dtype("auto") is torch.bfloat16)
    names = engine or ([*ENGINES] if everything else usual)
    if unknown := set(names) - ENGINES.keys():
        raise typer.BadParameter(f"--engine: got {unknown.pop()!r}, expected one of {', '.join(ENGINES)}")
    failed: dict[str, str] = {}
    if setup:
        install_all({ENGINES[name].environment for name in names} - {""}, folder, failed)
    lengths, widths = ([int(n) for n in text.split(",")] for text in (prompts, branches))
    paths = prepare(model, {ENGINES[name].form for name in names}, folder / "models")
    options = {
        "threads": torch.get_num_threads(),
        "branches": max(widths),
        "context": max(lengths) + max(widths) * (tokens + 16) + 64,
    }
    tried: list[Record] = []
    records: list[Record] = []
    about: dict[str, Record] = {}
    with closing() as processes:
        for length in lengths:
            start(processes, {name: ENGINES[name] for name in names}, paths, folder, options, failed)
            about |= {name: process.about for name, process in processes.items()}
            for width in sorted(widths):
                print(f"{length:,} tokens, {width} branches", file=sys.stderr)
                now = try_all(processes, (length, width), seconds, failed)
                tried += now
                records += measure_fastest(processes, now, tokens, rounds, seconds, failed)
    for length in lengths:
        print(f"\n{model}, {length:,} shared tokens, tokens/s of branches\n\n{table(records, tried, length)}")
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if json_file is not None:
        machine = {name: value for name, value in collect().items() if name != "model_cache"}
        told = {"model": model, "tokens": tokens, "rounds": rounds, "machine": machine, "engines": about}
        told |= {"failed": failed, "tried": tried, "results": records}
        json_file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        for length in lengths:
            plot(records, length, json_file.with_name(f"{json_file.stem}_{length}.svg"))


if __name__ == "__main__":
    typer.run(main)
