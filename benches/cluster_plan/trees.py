"""The plan's searches: ETS at width 256 on simulated problems, grown by `benches.ets_claims`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import typer
from tts_decode.records.record_file import read_records

from benches.ets_claims.admission import loads
from benches.ets_claims.paging import mean_pages
from benches.ets_claims.record import SCHEMA, THRESHOLD, VERSION
from benches.ets_claims.searches import Source, policies, searched

WIDTH, SCORES, POLICY = 256, "0.75", "ets, per node"


class Tree(NamedTuple):
    """One search. loads: [rows, pages, pairs] after each chunk of its time. prompt, sampled, nodes: tokens of
    the prompt, tokens that went through the model after it, steps grown. mean_pages: over its time."""

    loads: list[list[int]]
    prompt: int
    sampled: int
    nodes: int
    mean_pages: float

    @property
    def peak_pages(self) -> int:
        return max(pages for _, pages, _ in self.loads)


def simulation(record: Path) -> Callable[[int], Tree]:
    """Searches by the number of their problem; problems are fitted to the recorded trees."""
    header, records, _ = read_records(record, SCHEMA, VERSION, error=typer.BadParameter)
    source = Source.of(SCORES, records, header["rollouts"])
    policy = policies(WIDTH, THRESHOLD)[POLICY]

    def search(problem: int) -> Tree:
        world = source.world(problem)
        stages, moments = searched(world, WIDTH, policy)
        return Tree(
            loads=[[*load] for load in loads(moments)],
            prompt=world.nodes.tokens[0],
            sampled=sum(moment.ticks * moment.rows for moment in moments),
            nodes=sum(len(stage.steps) for stage in stages),
            mean_pages=mean_pages(moments),
        )

    return search


def told(trees: list[Tree]) -> list[dict[str, Any]]:
    return [tree._asdict() for tree in trees]


def read(found: list[dict[str, Any]]) -> list[Tree]:
    return [Tree(**tree) for tree in found]
