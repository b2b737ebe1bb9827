"""Fits the parameters of the simulated worlds to the record."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from benches.ets_claims.worlds import Array, Fit

Record = dict[str, Any]


def fit(records: Sequence[Record], rollouts: int) -> Fit:
    """Unbiased moments, so far as there are some: the noise of `rollouts` rollouts is taken out of all
    variances."""
    siblings, others, dimensions = _cosines(records)
    return Fit(
        problem_values=_beta(records, rollouts),
        spreads=_spreads(records, rollouts),
        depths=tuple(_depth(record) for record in records),
        tokens=_tokens(records),
        prompt=round(float(np.mean([record["nodes"][0][1] for record in records]))),
        alike=(siblings, others),
        dimensions=dimensions,
        early=_early(records),
        silent=_silent(records),
        same_wrong=_same_wrong(records),
    )


def depths_of(record: Record) -> list[int]:
    """Of each node; 0 is the prompt."""
    depths = [0]
    for parent, *_ in record["nodes"][1:]:
        depths.append(depths[parent] + 1)
    return depths


def _depth(record: Record) -> int:
    """At which most branches state their answer."""
    ends = [d for d, node in zip(depths_of(record), record["nodes"], strict=True) if node[3] is not None]
    return Counter(ends).most_common(1)[0][0] if ends else max(depths_of(record))


def _tokens(records: Sequence[Record]) -> tuple[tuple[int, ...], ...]:
    """By depth up to the usual last one. Of one token are branches that began a paragraph that is no step."""
    found: dict[int, list[int]] = {}
    for record in records:
        for depth, node in zip(depths_of(record), record["nodes"], strict=True):
            if 0 < depth <= _depth(record) and node[1] > 1:
                found.setdefault(depth, []).append(node[1])
    return tuple(tuple(found[depth]) for depth in sorted(found))


def _early(records: Sequence[Record]) -> float:
    ended = steps = 0
    for record in records:
        last = _depth(record)
        for depth, node in zip(depths_of(record), record["nodes"], strict=True):
            if 0 < depth < last:
                steps += 1
                ended += node[2] < 0
    return ended / max(steps, 1)


def _silent(records: Sequence[Record]) -> float:
    ends = [(n[3], record["answer"]) for record in records for n in record["nodes"] if n[2] < 0]
    wrong = [answer for answer, right in ends if answer != right]
    return sum(answer is None for answer in wrong) / max(len(wrong), 1)


def _groups(record: Record) -> Iterator[tuple[int, list[int]]]:
    """(depth, nodes) of all siblings that go on, two and more."""
    depths = depths_of(record)
    below: dict[int, list[int]] = {}
    for at, (parent, _, value, _) in enumerate(record["nodes"][1:], start=1):
        if value >= 0:
            below.setdefault(parent, []).append(at)
    for group in below.values():
        if len(group) > 1:
            yield depths[group[0]], group


def _beta(records: Sequence[Record], rollouts: int) -> tuple[float, float]:
    """a, b whose mean and variance are those of the problems' values, which their first steps estimate."""
    means, noises = [], []
    for record in records:
        first = np.array([n[2] for n in record["nodes"][1:] if n[0] == 0 and n[2] >= 0]) / rollouts
        means.append(first.mean())
        noises.append(first.var(ddof=1) / len(first))
    mean = float(np.mean(means))
    variance = float(np.var(means, ddof=1) - np.mean(noises)) if len(means) > 1 else 0.0
    strength = mean * (1 - mean) / max(variance, 0.01) - 1
    return mean * strength, (1 - mean) * strength


def _spreads(records: Sequence[Record], rollouts: int) -> tuple[float, ...]:
    """By depth from 1 on: variance of siblings' values over v (1 - v) of the node above.

    A share m of right rollouts has E[m (1 - m)] = (1 - 1 / rollouts) v' (1 - v'), which gives both the noise
    of m and v (1 - v) = Var(v') + E[v' (1 - v')].
    """
    between: dict[int, list[float]] = {}
    for record in records:
        for depth, group in _groups(record):
            shares = np.array([record["nodes"][at][2] for at in group]) / rollouts
            inner = float((shares * (1 - shares)).mean()) * rollouts / (rollouts - 1)
            variance = float(shares.var(ddof=1)) - inner / rollouts
            sums = between.setdefault(depth, [0.0, 0.0])
            sums[0] += len(group) * variance
            sums[1] += len(group) * (variance + inner)
    return tuple(
        min(max(between[depth][0] / max(between[depth][1], 1e-9), 0.0), 0.99) for depth in sorted(between)
    )


def _same_wrong(records: Sequence[Record]) -> float:
    """Of pairs of wrong answers to a problem, the share that is the same."""
    same = pairs = 0
    for record in records:
        wrong = Counter(n[3] for n in record["nodes"] if n[3] not in (None, record["answer"]))
        count = sum(wrong.values())
        pairs += count * (count - 1)
        same += sum(n * (n - 1) for n in wrong.values())
    return same / pairs if pairs else 0.0


def _cosines(records: Sequence[Record]) -> tuple[float, float, int]:
    """Mean cosines of the embeddings of siblings, and of other steps of one problem at one depth; and how
    many dimensions normal vectors have whose cosines vary as those of siblings do."""
    near: list[float] = []
    far: list[float] = []
    for record in records:
        unit = unit_rows(record)
        depths = depths_of(record)
        for one, other in combinations(range(1, len(depths)), 2):
            if depths[one] == depths[other]:
                alike = record["nodes"][one][0] == record["nodes"][other][0]
                (near if alike else far).append(float(unit[one - 1] @ unit[other - 1]))
    siblings, others = float(np.mean(near)), float(np.mean(far)) if far else float(np.mean(near))
    # Of vectors with correlation r in D dimensions a cosine has variance of about (1 - r^2)^2 / D.
    dimensions = max(2, round((1 - siblings**2) ** 2 / float(np.var(near))))
    return siblings, min(siblings, others), dimensions


def unit_rows(record: Record) -> Array:
    """Embeddings of all nodes but the prompt, of length 1."""
    rows = np.frombuffer(base64.b64decode(record["embeddings"]), np.int8).astype(np.float64)
    rows = rows.reshape(len(record["nodes"]) - 1, -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
