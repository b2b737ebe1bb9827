"""Searches of a set of problems, recorded or simulated, by REBASE and by ETS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tts_decode.core.params import mix

from benches.ets_claims.fitting import fit
from benches.ets_claims.growing import LAMBDA_D, Policy, Stage, account, grow
from benches.ets_claims.paging import Moment, Snapshot, mean_pages, peak_pages, replay
from benches.ets_claims.parts import SHAPES, law_of
from benches.ets_claims.worlds import Fit, NoisyScores, RecordedWorld, RolloutScores, SimulatedWorld, World

Record = dict[str, Any]

REPLAY, DEVELOPMENT = 1, 2  # sets of simulated problems
SIDE_BY_SIDE = 8  # searches that the authors' code runs at a time


@dataclass(frozen=True)
class Source:
    """Where problems come from. scores: "recorded", "rollouts" or an AUC such as "0.75"; all but the first
    are simulated. longer: times as many steps as recorded."""

    scores: str
    records: Sequence[Record]
    rollouts: int
    fitted: Fit
    longer: int = 1

    @classmethod
    def of(cls, scores: str, records: Sequence[Record], rollouts: int, longer: int = 1) -> Source:
        return cls(scores, records, rollouts, fit(records, rollouts), longer)

    def world(self, problem: int, chosen: int = REPLAY) -> World:
        """chosen: the set of problems."""
        if self.scores == "recorded":
            return RecordedWorld(self.records[problem], self.rollouts)
        kind = RolloutScores(self.rollouts) if self.scores == "rollouts" else NoisyScores(float(self.scores))
        return SimulatedWorld(self.fitted, kind, mix(chosen, problem), self.longer)


def policies(width: int, threshold: float) -> dict[str, Policy]:
    """REBASE, and ETS with the settings of its authors' code for the width, by two costs of a node."""
    published = {"lambda_b": 1.0, "lambda_d": LAMBDA_D[width], "threshold": threshold}
    return {
        "rebase": Policy(),
        "ets, per node": Policy(**published),
        "ets, per token": Policy(**published, node_cost="token"),
    }


def searched(world: World, width: int, policy: Policy) -> tuple[list[Stage], list[Moment]]:
    stages = grow(world, width, policy)
    return stages, replay(world.nodes, stages)


def measured(source: Source, problem: int, width: int, chosen: Mapping[str, Policy]) -> dict[str, Record]:
    """KV and votes of one problem by each policy, and what the cost law says of its time on an H100,
    seconds."""
    found = {}
    for name, policy in chosen.items():
        world = source.world(problem)
        stages, moments = searched(world, width, policy)
        found[name] = account(world.nodes, stages)._asdict() | {
            "mean_pages": mean_pages(moments),
            "peak_pages": peak_pages(moments),
            "ticks": sum(moment.ticks for moment in moments),
            "borrowed": getattr(world, "borrowed", 0),
            "nodes": len(world.nodes.parents),
            "law": {
                f"{shape} x {count}": law_of(moments, SHAPES[shape], count)
                for shape in SHAPES
                for count in (1, SIDE_BY_SIDE)
            },
        }
    return found


def snapshots(
    source: Source, problem: int, width: int, chosen: Mapping[str, Policy]
) -> dict[str, list[Snapshot]]:
    """The attention of every step, half-way through it, that all policies take on this problem."""
    found: dict[str, dict[int, Snapshot]] = {}
    for name, policy in chosen.items():
        world = source.world(problem)
        stages = grow(world, width, policy)
        found[name] = {}
        replay(world.nodes, stages, found[name].__setitem__)
    common = set.intersection(*(set(steps) for steps in found.values()))
    return {name: [steps[number] for number in sorted(common)] for name, steps in found.items()}


def by_threshold(source: Source, width: int, thresholds: Sequence[float]) -> list[Record]:
    """How finely steps are told apart, and what ETS then keeps of the source's recorded problems."""
    found = []
    for threshold in thresholds:
        for name, policy in policies(width, threshold).items():
            accounts = []
            for problem in range(len(source.records)):
                world = source.world(problem)
                accounts.append(account(world.nodes, grow(world, width, policy)))
            live = sum(seen.live for seen in accounts)
            found.append(
                {
                    "threshold": threshold,
                    "search": name,
                    "clusters": sum(seen.clusters for seen in accounts) / live,
                    "kept": sum(seen.kept for seen in accounts) / live,
                    "kv_sum": [seen.kv_sum for seen in accounts],
                }
            )
    return found
