"""Compares quantised models with other engines: python -m benches.quantised_decoding [CASE ...]

llama.cpp, OpenVINO GenAI and ours read the same GGUF file. Each prefills a prompt once, then decodes branches
that share it in alternating rounds from the saved state, at temperature 1 and without an end. For each number
of branches, all settings of an engine are tried, and the fastest is measured, on all of the machine's
threads. A read stream with the same threads is measured before and after. Cases are named model/kind;
default: all.

Models other than SmolLM2 and Gemma are random, with the tokenizer of SmolLM2; the rest of a larger vocabulary
are unused tokens, which are drawn like others. Eight layers are drawn, and repeated in deeper models.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tts_decode.cli.info import collect

from benches.decode_comparison import (
    ROOT,
    Record,
    closing,
    engine_of,
    install_all,
    measure_fastest,
    plot,
    random_prompt,
    start,
    table,
    try_all,
)
from benches.peers.engines import QUANTISED, PeerError, Process
from benches.quantised.cases import CASES, Case, find
from benches.quantised.files import prepare_file, remove_files, step_bytes
from benches.quantised.read_stream import ReadStream
from benches.quantised.report import memory_table, prefill_table, ratios, stream_shares

LOAD_SECONDS = 3600.0  # a first load may convert the file
PREFILL_SECONDS = 3600.0


def kept(process: Process, _prompt: list[int], branches: int, tokens: int, limit: float) -> Record:
    """Decodes from the prompt that the process keeps."""
    return process.decode(branches, tokens, limit)


def prefill_all(
    processes: dict[str, Process], length: int, rounds: int, failed: dict[str, str]
) -> list[Record]:
    """Seconds of each process in each round, a new prompt each time. The last one stays."""
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        prompt = random_prompt(length)
        for name in [*processes]:
            try:
                seconds[name].append(processes[name].keep(prompt, PREFILL_SECONDS))
            except PeerError as error:
                failed[f"{name}, {length} tokens"] = str(error)
                processes.pop(name).close()
    return [
        {"engine": engine_of(name), "setting": name, "prompt": length, "seconds": runs}
        for name, runs in seconds.items()
        if runs
    ]


def measure(case: Case, path: Path, folder: Path, tokens: int, rounds: int, seconds: float) -> Record:
    """All that is measured of a case, as JSON holds it. seconds: that one measurement may take, about."""
    threads = torch.get_num_threads()
    engines = {name: QUANTISED[name] for name in case.settings}
    lengths, most = [*case.prefills, *case.prompts], max(case.branches, default=1)
    options = {
        "threads": threads,
        "branches": most,
        "context": max(lengths, default=512) + most * (tokens + 16) + 64,
    }
    failed: dict[str, str] = {}
    about: dict[str, Record] = {}
    prefills: list[Record] = []
    tried: list[Record] = []
    records: list[Record] = []
    streams: list[float] = []
    with closing() as processes:

        def start_all() -> None:
            start(processes, engines, {"file": path}, folder, options, failed, LOAD_SECONDS)
            about.update({name: process.about for name, process in processes.items() if name not in about})

        start_all()
        for length in case.prefills:
            prefills += prefill_all(processes, length, rounds, failed)
        for length in case.prompts:
            start_all()
            prefills += prefill_all(processes, length, 1, failed)
            stream = ReadStream(threads)
            for branches in case.branches:
                print(f"{case.name}: {length:,} tokens, {branches} branches", file=sys.stderr)
                now = try_all(processes, (length, branches), seconds, failed, kept)
                tried += now
                streams.append(stream.rate())
                records += measure_fastest(processes, now, tokens, rounds, seconds, failed, kept)
                streams.append(stream.rate())
    machine = {name: value for name, value in collect().items() if name != "model_cache"}
    told: Record = {"model": case.model, "kind": case.kind, "file_bytes": path.stat().st_size}
    told |= {"step_bytes": step_bytes(path), "tokens": tokens, "rounds": rounds, "machine": machine}
    told |= {"engines": about, "failed": failed, "read_stream": streams}
    return told | {"prefills": prefills, "tried": tried, "results": records}


def report(case: Case, told: Record) -> str:
    parts = [
        f"{case.name}, {told['file_bytes'] / 2**20:.0f} MiB",
        memory_table(told["engines"], told["file_bytes"]),
    ]
    parts += [prefill_table(told["prefills"], length) for length in case.prefills]
    for length in case.prompts:
        records = told["results"]
        parts.append(f"{case.name}, {length:,} shared tokens, tokens/s of branches")
        parts.append(table(records, told["tried"], length))
        for branches, ratio in ratios(records, length).items():
            parts.append(f"{branches} branches: {ratio:.2f}x the best other engine")
        for engine, share in stream_shares(records, length, told["step_bytes"], told["read_stream"]).items():
            parts.append(f"{engine}, one branch: {100 * share:.0f} % of the read stream")
    return "\n\n".join(parts)


def changed(case: Case, settings: list[str] | None, prompts: str | None, branches: str | None) -> Case:
    """The case with what was given on the command line in place of its own."""
    changes: dict[str, Any] = {"settings": tuple(settings)} if settings else {}
    for name, text in (("prompts", prompts), ("branches", branches)):
        if text is not None:
            changes[name] = tuple(int(number) for number in text.split(",") if number)
    return replace(case, **changes)


def main(
    cases: Annotated[list[str] | None, typer.Argument(help=f"Default: {' '.join(CASES)}.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="Only these, of all cases.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Other lengths, with commas.")] = None,
    branches: Annotated[str | None, typer.Option(help="Other numbers, with commas.")] = None,
    tokens: Annotated[int, typer.Option(help="Of each branch and round, at most.")] = 32,
    rounds: int = 3,
    seconds: Annotated[float, typer.Option(help="That one measurement may take, about.")] = 6.0,
    setup: Annotated[bool, typer.Option(help="Install the peers first.")] = False,
    discard: Annotated[
        bool, typer.Option(help="Remove random models that no later case needs, and packed copies.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Of the peers' environments and models.")] = ROOT
    / "build/peers",
    results: Annotated[Path, typer.Option(help="Folder for quantised_MODEL_KIND.json.")] = ROOT
    / "build/quantised",
) -> None:
    try:
        chosen = [find(name) for name in cases or CASES]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if unknown := set(setting or ()) - QUANTISED.keys():
        raise typer.BadParameter(f"--setting: got {unknown.pop()!r}, expected one of {', '.join(QUANTISED)}")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # where our packed copies go
    results.mkdir(parents=True, exist_ok=True)
    if setup:
        failed: dict[str, str] = {}
        install_all({engine.environment for engine in QUANTISED.values()} - {""}, folder, failed)
        for name, reason in failed.items():
            print(f"{name}: {reason}", file=sys.stderr)
    for number, case in enumerate(chosen):
        case = changed(case, setting, prompts, branches)
        print(f"{case.name}: preparing the file", file=sys.stderr)
        try:
            path = prepare_file(case.model, case.kind, folder, torch.get_num_threads())
        except (PeerError, ValueError) as error:
            print(f"{case.name}: {error}", file=sys.stderr)
            continue
        told = measure(case, path, folder, tokens, rounds, seconds)
        print(report(case, told) + "\n")
        for name, reason in told["failed"].items():
            print(f"{name}: {reason}", file=sys.stderr)
        out = results / f"quantised_{case.model}_{case.kind}.json"
        out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        for length in case.prompts if case.plot else ():
            plot(told["results"], length, out.with_name(f"{out.stem}_{length}.svg"))
        if discard:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            if case.model not in {later.model for later in chosen[number + 1 :]}:
                remove_files(case.model, folder)


if __name__ == "__main__":
    typer.run(main)
