"""Runs searches whose KV is four times their pool: python -m benches.kv_offload

Each search runs in a large pool, and in one with a quarter of the peak number of pages, the rest offloaded.
Their texts are compared. The number of moved pages is compared with Belady's rule, which sees all forwards in
advance: of the pages that the next forward does not read, it moves out those that are read again last. A page
moves once, however many branches share it. One that no branch holds any more is freed without a move.

Then a prompt is computed, saved, and loaded by another decoder. The figures go to
benches/results/kv_offload.json and into docs/offload.md, unless only some searches were requested.
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from tts_decode import KVOffload, SamplingParams, TreeDecoder
from tts_decode.bench.timing import interleaved
from tts_decode.decoding import assembly
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.rewards import mean_probability
from tts_decode.search import STRATEGIES
from tts_decode.tasks import default_tasks

from benches.markers import fill
from benches.tables import Table, tracked
from tts_kernels import KVTree

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "benches/results/kv_offload.json", ROOT / "docs/offload.md"
SEARCHES: dict[str, dict[str, Any]] = {
    "best_of_n": {"n": 16},
    "beam_search": {"n": 16},
    "rebase": {"n": 16},
    "ets": {"n": 16},
    "mcts": {"num_simulations": 24},
}


class Tick(NamedTuple):
    """A forward: the pages that it reads or writes, and those that anybody holds, by their names."""

    read: frozenset[int]
    held: frozenset[int]


class TracedTree(KVTree):
    """A tree that gives each page a name when it is taken, and notes who needs which in each forward."""

    made: TracedTree

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        TracedTree.made = self
        self.ticks: list[Tick] = []
        self.moved = 0
        self._names: dict[int, int] = {}
        self._count = 0
        self._live: set[int] = set()

    def create(self) -> int:
        branch = super().create()
        self._live.add(branch)
        return branch

    def fork(self, branch: int, n: int = 1, at: int | None = None) -> list[int]:
        branches = super().fork(branch, n, at)
        self._live.update(branches)
        return branches

    def pin(self, branch: int, at: int | None = None) -> int:
        pin = super().pin(branch, at)
        self._live.add(pin)
        return pin

    def release(self, branch: int) -> None:
        super().release(branch)
        self._live.discard(branch)

    def unpin(self, pin: int) -> None:
        super().unpin(pin)
        self._live.discard(pin)

    def offload(self, pages: Any) -> Any:
        return self._renamed(super().offload(pages))

    def reload(self, branches: Any) -> Any:
        return self._renamed(super().reload(branches))

    def _renamed(self, moves: Any) -> Any:
        names = [self._names.pop(source) for source, _ in moves.tolist()]
        self._names |= dict(zip(moves[:, 1].tolist(), names, strict=True))
        self.moved += len(moves)
        return moves

    def append(self, branches: Any, tokens: Any) -> Any:
        before = [self._pages([branch]) for branch in branches]
        done = super().append(branches, tokens)
        for branch, had in zip(branches, before, strict=True):
            for page in self._pages([branch]) - had:
                self._names[page], self._count = self._count, self._count + 1
        self.ticks.append(Tick(self._named(branches), self._named(self._live)))
        return done

    def _pages(self, holders: Iterable[int]) -> set[int]:
        return set(np.unique(self.block_tables(list(holders))[0]).tolist()) - {-1}

    def _named(self, holders: Iterable[int]) -> frozenset[int]:
        return frozenset(self._names[page] for page in self._pages(holders))


def belady(ticks: Sequence[Tick], capacity: int) -> int:
    """Pages that Belady's rule moves, out and in, where so many fit."""
    uses: dict[int, list[int]] = {}  # by name, the ticks that read it, the next one last
    for at in reversed(range(len(ticks))):
        for name in ticks[at].read:
            uses.setdefault(name, []).append(at)
    inside: set[int] = set()
    outside: set[int] = set()
    moved = 0
    for tick in ticks:
        inside &= tick.held
        outside &= tick.held
        moved += len(tick.read & outside)
        outside -= tick.read
        inside |= tick.read
        for name in tick.read:
            uses[name].pop()
        over = len(inside) - capacity
        if over > 0:
            spare = sorted(inside - tick.read, key=lambda name: -(uses[name][-1] if uses[name] else math.inf))
            moved += over
            outside.update(spare[:over])
            inside.difference_update(spare[:over])
    return moved


async def search(decoder: TreeDecoder, name: str, prompts: Sequence[str], tokens: int) -> list[str]:
    """Texts of the searches of all prompts, which run beside each other."""
    sampling = SamplingParams(0.8, max_tokens=tokens, max_step_tokens=48, stop="\n\n", seed=1)

    async def one(prompt: str) -> str:
        root = await decoder.root([{"role": "user", "content": prompt}], sampling)
        result = await STRATEGIES[name](root, **SEARCHES[name], scorer=mean_probability())
        root.release()
        if result.stopped is not None:
            raise RuntimeError(f"{name}: {result.stopped}; take more problems or fewer tokens")
        return json.dumps([candidate.text for candidate in result.candidates])

    return await asyncio.gather(*(one(prompt) for prompt in prompts))


def compared(model: Any, tokenizer: Any, name: str, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
    large = TreeDecoder(model, tokenizer)
    began = time.perf_counter()
    expected = asyncio.run(search(large, name, prompts, tokens))
    seconds = time.perf_counter() - began
    held = large.stats()
    pages = held.peak_bytes // held.page_bytes
    small = TreeDecoder(
        model,
        tokenizer,
        kv_bytes=pages // 4 * held.page_bytes,
        kv_offload=KVOffload(2 * held.peak_bytes),
    )
    tree = TracedTree.made
    began = time.perf_counter()
    same = asyncio.run(search(small, name, prompts, tokens)) == expected
    best = belady(tree.ticks, pages // 4)
    return {
        "search": name,
        "pages": pages,
        "pool": pages // 4,
        "same_text": same,
        "moved": tree.moved,
        "belady": best,
        "ratio": tree.moved / max(best, 1),
        "moved_mib": tree.moved * held.page_bytes / 2**20,
        "seconds": [seconds, time.perf_counter() - began],
    }


def restored(model: Any, tokenizer: Any, tokens: int) -> dict[str, float]:
    """Seconds to compute a prompt, and to load it from a file."""
    prompt = np.random.default_rng(1).integers(100, 5000, tokens).tolist()
    writer, reader = TreeDecoder(model, tokenizer), TreeDecoder(model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefix.kv"

        async def save() -> None:
            root = await writer.root(prompt)
            writer.save_kv(file, [root])
            root.release()

        def compute() -> None:
            async def whole() -> None:
                (await writer.root(prompt)).release()

            asyncio.run(whole())

        def load() -> None:
            for pin in reader.load_kv(file):
                pin.release()

        asyncio.run(save())
        times = interleaved({"compute": compute, "load": load}, 3)
        size = file.stat().st_size
    return {"tokens": tokens, "file_bytes": size} | {what: q.median for what, q in times.items()}


def search_table(rows: Sequence[dict[str, Any]]) -> Table:
    heads = [
        "search",
        "pages at most",
        "pool",
        "same text",
        "pages moved",
        "by Belady's rule",
        "ratio",
        "time",
    ]
    return Table(
        heads,
        [
            [
                row["search"],
                f"{row['pages']:,}",
                f"{row['pool']:,}",
                "yes" if row["same_text"] else "no",
                f"{row['moved']:,}",
                f"{row['belady']:,}",
                f"{row['ratio']:.2f}",
                f"{row['seconds'][1] / row['seconds'][0]:.2f}x",
            ]
            for row in rows
        ],
    )


def prefix_line(found: dict[str, float]) -> str:
    size, times = found["file_bytes"] / 1e6, found["compute"] / found["load"]
    return (
        f"A prompt of {found['tokens']:,} tokens is computed in {found['compute']:.1f} s, and loaded from a "
        f"file of {size:.0f} MB in {found['load']:.2f} s, {times:.0f} times as fast."
    )


def filled(page: str, told: dict[str, Any]) -> str:
    """docs/offload.md with its figures written anew."""
    return fill(
        page, {"searches": search_table(told["searches"]).markdown(), "prefix": prefix_line(told["prefix"])}
    )


def main(
    searches: Annotated[list[str] | None, typer.Argument(help=f"Default: {' '.join(SEARCHES)}.")] = None,
    problems: Annotated[int, typer.Option(help="That are searched beside each other.")] = 6,
    tokens: Annotated[int, typer.Option(help="Of each branch at most.")] = 128,
    prefix: Annotated[int, typer.Option(help="Tokens of the prompt that is saved; 0: none.")] = 8192,
) -> None:
    if unknown := set(searches or ()) - SEARCHES.keys():
        raise typer.BadParameter(f"got {unknown.pop()!r}, expected some of {', '.join(SEARCHES)}")
    assembly.KVTree = TracedTree  # type: ignore[misc]
    model, tokenizer = load_model(DEFAULT_MODEL, "float32")
    prompts = [task.prompt for task in default_tasks(problems)]
    names = searches or list(SEARCHES)
    rows = [compared(model, tokenizer, name, prompts, tokens) for name in tracked(names, "searches")]
    search_table(rows).show("KV of four times the pool")
    told: dict[str, Any] = {
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "searches": rows,
    }
    if prefix:
        told["prefix"] = found = restored(model, tokenizer, prefix)
        print(prefix_line(found))
    if searches or not prefix:
        return
    RECORD.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), told), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
