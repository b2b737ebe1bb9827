"""Sources of a replayed search's steps: a recorded tree, or a model of one.

A world grows node by node: `children` returns the first continuations of a node. Node 0 is the prompt.
"""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Protocol, TypeVar

import numpy as np
from tts_decode.core.params import mix

Array = np.ndarray[Any, Any]
T = TypeVar("T")

RIGHT = 0  # answers are numbers: 0 the right one, others wrong ones


@dataclass
class Nodes:
    """One entry a node: the node above (-1 at the prompt), its tokens, what a scorer says of it, and of a
    finished one its answer (`RIGHT`, or the number of a wrong one; None elsewhere and where it states
    none)."""

    parents: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    answers: list[int | None] = field(default_factory=list)

    def add(self, parent: int, tokens: int, score: float, finished: bool, answer: int | None) -> int:
        self.parents.append(parent)
        self.tokens.append(tokens)
        self.scores.append(score)
        self.finished.append(finished)
        self.answers.append(answer)
        return len(self.parents) - 1


class World(Protocol):
    nodes: Nodes

    def children(self, node: int, count: int) -> list[int]:
        """`count` new continuations of a node, asked for once a node."""
        ...

    def embeddings(self, nodes: Sequence[int]) -> Array:
        """[N, D], of which directions matter."""
        ...


# ---- recorded


class RecordedWorld:
    """A recorded problem. Continuations that were recorded come first; where a search wants more, the unused
    ones of the node of the same depth and the nearest value stand in, with all below them.

    source: of each node, its place in the record. borrowed: how many nodes stand in.
    """

    def __init__(self, record: dict[str, Any], rollouts: int) -> None:
        self._record, self._rollouts = record["nodes"], rollouts
        rows = np.frombuffer(base64.b64decode(record["embeddings"]), np.int8)
        self._rows = rows.reshape(len(self._record) - 1, -1)
        self._below: list[list[int]] = [[] for _ in self._record]
        self._depth = [0] * len(self._record)
        for at, (parent, *_) in enumerate(self._record[1:], start=1):
            self._below[parent].append(at)
            self._depth[at] = self._depth[parent] + 1
        wrong = {answer for *_, answer in self._record if answer not in (None, record["answer"])}
        self._answer_ids = {record["answer"]: RIGHT} | {a: i for i, a in enumerate(sorted(wrong), start=1)}
        self._used = [False] * len(self._record)
        self.source = [0]
        self.nodes = Nodes()
        self.nodes.add(-1, self._record[0][1], 0.5, False, None)
        self.borrowed = 0

    def children(self, node: int, count: int) -> list[int]:
        return [self._child(node, k) for k in range(count)]

    def embeddings(self, nodes: Sequence[int]) -> Array:
        return self._rows[[self.source[node] - 1 for node in nodes]].astype(np.float64)

    def _child(self, node: int, k: int) -> int:
        own = self._below[self.source[node]]
        if k < len(own) and not self._used[own[k]]:
            source = own[k]
        else:
            source = self._stand_in(self.source[node], k)
            self.borrowed += 1
        self._used[source] = True
        self.source.append(source)
        _, tokens, value, answer = self._record[source]
        finished = value < 0
        score = self.nodes.scores[node] if finished else value / self._rollouts
        stated = None if answer is None else self._answer_ids[answer]
        return self.nodes.add(node, tokens, score, finished, stated)

    def _stand_in(self, source: int, k: int) -> int:
        """A step that follows a node like `source`: an unused one if there is any."""
        depth, value = self._depth[source], self._record[source][2]
        alike = sorted(
            (at for at, below in enumerate(self._below) if below and self._depth[at] == depth),
            key=lambda at: (abs(self._record[at][2] - value), at),
        )
        free = (below for at in alike for below in self._below[at] if not self._used[below])
        nearest = self._below[alike[0]]
        return next(free, nearest[k % len(nearest)])


# ---- simulated


@dataclass(frozen=True)
class Fit:
    """What a simulated world takes from the record.

    problem_values: a, b of the Beta distribution of the values of problems.
    spreads: by depth, the share of v (1 - v) that a step's value varies by around v, the value of the node
        above.
    depths: of the recorded problems, how many steps they take.
    tokens: of all recorded steps, by depth. prompt: its tokens.
    alike: cosines of the embeddings of siblings, and of other steps of a problem at one depth.
    dimensions: of the embeddings that vary as the recorded ones.
    early: share of steps before the last at which a branch ends, and is wrong.
    silent: of branches that end and are not right, the share without an answer.
    same_wrong: how often two wrong answers to a problem are the same.
    """

    problem_values: tuple[float, float]
    spreads: tuple[float, ...]
    depths: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    prompt: int
    alike: tuple[float, float]
    dimensions: int
    early: float
    silent: float
    same_wrong: float


class RolloutScores:
    """The share of `rollouts` rollouts that are right: the scores of the record."""

    def __init__(self, rollouts: int = 8) -> None:
        self.rollouts = rollouts

    def score(self, value: float, right: bool | None, above: float, rng: random.Random) -> float:
        """right: None before the end. above: the score of the node above, which a finished one keeps."""
        if right is not None:
            return above
        return sum(rng.random() < value for _ in range(self.rollouts)) / self.rollouts


class NoisyScores:
    """Scores whose AUC for right against wrong branches is `auc`.

    A branch has an outcome, right with the probability that is its value. Its signal is normal, of variance
    1, around +d/2 if right and -d/2 if wrong, d = sqrt(2) * z(auc) with z the normal quantile: of a right
    and a wrong branch the right one has the larger signal with probability auc. The score is 1 / (1 + exp(-d
    * signal)), which at even odds is the probability of right given the signal. Errors are independent from
    step to step.
    """

    def __init__(self, auc: float) -> None:
        if not 0.5 < auc < 1:
            raise ValueError(f"auc: got {auc}, expected more than 0.5 and less than 1")
        self._distance = math.sqrt(2) * NormalDist().inv_cdf(auc)

    def score(self, value: float, right: bool | None, above: float, rng: random.Random) -> float:
        if right is None:
            right = rng.random() < value
        signal = rng.gauss(self._distance / 2 if right else -self._distance / 2, 1)
        return 1 / (1 + math.exp(-self._distance * signal))


_MASK = (1 << 64) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64


class _Draws(random.Random):
    """The random numbers of a key. `random.Random(key)` would take 50 us to seed, this takes none."""

    def of(self, key: int) -> random.Random:
        self._state, self.gauss_next = key, None
        return self

    def random(self) -> float:
        self._state = (self._state + _GOLDEN) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * _FIRST) & _MASK
        z = ((z ^ (z >> 27)) * _SECOND) & _MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def _normals(keys: Sequence[int], dimensions: int) -> Array:
    """Normal numbers [N, dimensions] of the keys, by SplitMix64 and the transform of Box and Muller."""
    counters = np.arange(1, 2 * dimensions + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    z = np.array(keys, dtype=np.uint64)[:, None] + counters
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    uniform = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :dimensions]))
    return np.asarray(radius * np.cos(2 * math.pi * uniform[:, dimensions:]))


class SimulatedWorld:
    """A problem as the record has them on average. Child k of a node is the same for every search of the
    problem, so that searches differ by what they choose, not by luck.

    Values: the problem's is drawn from Beta(a, b). A step's is drawn around the one above, v, from
    Beta(v c, (1 - v) c) with c = 1 / spread - 1: its mean is v and its variance spread * v (1 - v). The last
    step is right with probability v. Embeddings are sums of three normal vectors, of the depth, of the
    siblings and of the step, weighted so that cosines are `Fit.alike` on average.
    """

    def __init__(self, fit: Fit, scores: RolloutScores | NoisyScores, seed: int, longer: int = 1) -> None:
        """longer: times as many steps, each with its share of the spread."""
        self._fit, self._scores, self._longer = fit, scores, longer
        self._early = 1 - (1 - fit.early) ** (1 / longer)
        self._draws = _Draws(0)
        rng = self._draws.of(mix(seed, 1))
        self._keys = [mix(seed, 2)]
        self.values = [rng.betavariate(*fit.problem_values)]
        self._last = longer * rng.choice(fit.depths)
        self._depth = [0]
        self.nodes = Nodes()
        self.nodes.add(-1, fit.prompt, 0.5, False, None)

    def children(self, node: int, count: int) -> list[int]:
        return [self._child(node, k) for k in range(count)]

    def _child(self, node: int, k: int) -> int:
        key = mix(self._keys[node], k)
        rng = self._draws.of(key)
        depth = self._depth[node] + 1
        # Branches that end early are wrong; the others make up for it, so that values stay the same on
        # average.
        early = depth < self._last and rng.random() < self._early
        above = self.values[node] if depth == self._last else min(1.0, self.values[node] / (1 - self._early))
        tokens = rng.choice(self._recorded(self._fit.tokens, depth))
        right = False if early else rng.random() < above if depth == self._last else None
        value = float(right) if right is not None else _around(above, self._spread(depth), rng)
        score = self._scores.score(value, right, self.nodes.scores[node], rng)
        answer = RIGHT if right else None
        if right is False and rng.random() >= self._fit.silent:
            answer = _wrong(self._fit.same_wrong, rng)
        finished = right is not None
        self._keys.append(key)
        self.values.append(value)
        self._depth.append(depth)
        return self.nodes.add(node, tokens, score, finished, answer)

    def _spread(self, depth: int) -> float:
        """Its part of a recorded step's: what is left of v (1 - v) multiplies."""
        return 1 - (1 - self._recorded(self._fit.spreads, depth)) ** (1 / self._longer)

    def _recorded(self, by_depth: Sequence[T], depth: int) -> T:
        """Of the recorded step that this one is a part of."""
        return by_depth[min((depth - 1) // self._longer, len(by_depth) - 1)]

    def embeddings(self, nodes: Sequence[int]) -> Array:
        siblings, others = self._fit.alike
        keys = (
            [mix(self._keys[0], self._depth[node]) for node in nodes],
            [mix(self._keys[self.nodes.parents[node]], 3) for node in nodes],
            [mix(self._keys[node], 4) for node in nodes],
        )
        rows = np.zeros((len(nodes), self._fit.dimensions))
        for weight, own in zip((others, siblings - others, 1 - siblings), keys, strict=True):
            rows += math.sqrt(weight) * _normals(own, self._fit.dimensions)
        return rows


def _around(value: float, spread: float, rng: random.Random) -> float:
    """A draw of mean `value` and variance spread * value * (1 - value)."""
    if spread <= 0:
        return value
    strength = 1 / spread - 1
    a, b = value * strength, (1 - value) * strength
    if a < 1e-3 or b < 1e-3 or strength <= 0:  # all mass at the ends, where betavariate underflows
        return float(rng.random() < value)
    return rng.betavariate(a, b)


def _wrong(same: float, rng: random.Random) -> int:
    """1, 2, ... by a geometric law in which two draws are equal with probability `same`."""
    p = 2 * same / (1 + same)
    return 1 + int(math.log(1 - rng.random()) / math.log(1 - p)) if 0 < p < 1 else 1
