"""Measures the claims of ETS over REBASE: 1.8x less KV and 1.4x throughput.

Each command saves its results as it runs, and resumes after an interruption. `page` writes the tables.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from tts_decode.records.record_file import read_records

from benches.ets_claims import price as prices
from benches.ets_claims import throughput as served
from benches.ets_claims.figures import figures
from benches.ets_claims.ledger import Ledger, read_ledger
from benches.ets_claims.parts import HEADS, time_attention, time_products
from benches.ets_claims.record import SCHEMA, THRESHOLD, VERSION
from benches.ets_claims.record import record as record_searches
from benches.ets_claims.report import tables
from benches.ets_claims.searches import Source, measured, policies, snapshots
from benches.markers import fill

Record = dict[str, Any]
T = TypeVar("T")

RESULTS = Path("benches/results")
SIMULATED = ((64, "0.75"), (64, "0.85"), (256, "0.75"), (256, "0.85"))
REPLAYED = ((16, "recorded"), (16, "rollouts"), *SIMULATED)
LONGER = 2  # times as many steps as recorded, beside the recorded number
TIMED = ((16, "recorded"), (64, "0.85"), (256, "0.85"))
TIMED_PROBLEMS = 3
ROWS = (16, 64, 256, 1024)

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
RecordOption = Annotated[Path, typer.Option("--record", help="the recorded trees")]
LedgerOption = Annotated[Path, typer.Option("--ledger", help="what is measured, part by part")]
_RECORD, _LEDGER = RESULTS / "ets_record.jsonl", RESULTS / "ets_claims.jsonl"


@app.command()
def record(
    problems: Annotated[int, typer.Option(help="how many, from the first on")] = 30,
    path: RecordOption = _RECORD,
) -> None:
    """Searches the default model at width 16 with Monte-Carlo scores: some minutes a problem."""
    record_searches(path, problems)


@app.command()
def replay(
    problems: Annotated[int, typer.Option(help="simulated ones of each width and AUC")] = 30,
    path: RecordOption = _RECORD,
    ledger: LedgerOption = _LEDGER,
) -> None:
    """Measures KV of REBASE and ETS on the same problems, by the paper's sum and in pages of a KVTree."""
    records, rollouts = _records(path)
    units = [(*unit, 1) for unit in REPLAYED] + [(*unit, LONGER) for unit in SIMULATED]
    with Ledger(ledger) as known:
        for width, scores, longer in units:
            source = Source.of(scores, records, rollouts, longer)
            count = len(records) if scores == "recorded" else problems
            for number in _told(range(count), f"replay, width {width}, scores {scores}, {longer} x steps"):
                key = _key(records, width, scores) | {"longer": longer, "problem": number}
                make = partial(measured, source, number, width, policies(width, THRESHOLD))
                known.result("replay", key, make)


@app.command(name="time")
def time_parts(
    rounds: Annotated[int, typer.Option(help="of each call, in turn")] = 7,
    path: RecordOption = _RECORD,
    ledger: LedgerOption = _LEDGER,
) -> None:
    """Seconds of attention over trees sampled at every step, and of a layer's products, on this CPU."""
    records, rollouts = _records(path)
    with Ledger(ledger) as known:
        known.result("products", {"rows": [*ROWS]}, partial(time_products, ROWS, rounds))
        for width, scores in TIMED:
            source = Source.of(scores, records, rollouts)
            for number in _told(range(TIMED_PROBLEMS), f"attention, width {width}"):
                trees = snapshots(source, number, width, policies(width, THRESHOLD))
                for heads in HEADS:
                    key = _key(records, width, scores) | {"problem": number, "heads": str(heads)}
                    known.result("attention", key, partial(time_attention, heads, trees, rounds))


@app.command()
def throughput(path: RecordOption = _RECORD, ledger: LedgerOption = _LEDGER) -> None:
    """Problems a minute from fixed budgets of KV: by the cost law on an H100, and by what `time` measured."""
    records, rollouts = _records(path)
    machines = served.machines(read_ledger(ledger))
    with Ledger(ledger) as known:
        for width, scores in _told((REPLAYED[0], *SIMULATED), "throughput"):
            key = _key(records, width, scores) | {"machines": [*machines]}
            source = Source.of(scores, records, rollouts)
            make = partial(served.all_served, source, width, policies(width, THRESHOLD), machines)
            known.result("throughput", key, make)


@app.command()
def price(
    blocks: Annotated[
        int, typer.Option(help="of 250 simulated problems (50 at width 256), for each width and AUC")
    ] = 4,
    widths: Annotated[str, typer.Option(help="with commas")] = "16,64,256",
    path: RecordOption = _RECORD,
    ledger: LedgerOption = _LEDGER,
) -> None:
    """Accuracy and KV by the price of KV, lambda_b, on problems of their own."""
    records, rollouts = _records(path)
    units = [(width, auc) for width in map(int, widths.split(",")) for auc in ("0.75", "0.85")]
    with Ledger(ledger) as known:
        for block in range(blocks):
            recorded = [(16, "recorded")] if block == 0 else []
            for width, scores in _told([*recorded, *units], f"price, block {block + 1} of {blocks}"):
                source = Source.of(scores, records, rollouts)
                count = len(records) if scores == "recorded" else prices.BLOCK[width]
                key = _key(records, width, scores) | {"first": block * prices.BLOCK[width]}
                make = partial(prices.block, source, width, THRESHOLD, key["first"], count)
                known.result("price", key, make)


@app.command()
def page(
    path: RecordOption = _RECORD,
    ledger: LedgerOption = _LEDGER,
    json_file: Annotated[Path, typer.Option("--json", help="where the figures go")] = (
        RESULTS / "ets_claims.json"
    ),
    docs: Annotated[Path, typer.Option(help="the page whose tables are replaced")] = Path("docs/ets.md"),
) -> None:
    """Writes the figures of all parts as JSON, and the tables of the page."""
    records, rollouts = _records(path)
    found = figures(records, rollouts, read_ledger(ledger))
    json_file.write_text(json.dumps(found, indent=1) + "\n")
    docs.write_text(fill(docs.read_text(), tables(found)))


def _records(path: Path) -> tuple[list[Record], int]:
    header, records, _ = read_records(path, SCHEMA, VERSION, error=typer.BadParameter)
    if not records:
        raise typer.BadParameter(f"{path}: got no problem, expected at least one; run the command record")
    return records, header["rollouts"]


def _key(records: list[Record], width: int, scores: str) -> Record:
    """fitted: recorded problems, with which all that is simulated changes."""
    return {"width": width, "scores": scores, "fitted": len(records)}


def _told(items: Iterable[T], what: str) -> Iterator[T]:
    """The items; how far they are, and in what time, is printed."""
    whole, began = [*items], time.perf_counter()
    for done, item in enumerate(whole, start=1):
        yield item
        print(f"{time.perf_counter() - began:6.0f} s  {what}: {done} of {len(whole)}", file=sys.stderr)


if __name__ == "__main__":
    app()
