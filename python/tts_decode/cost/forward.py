"""The cost of a step and of a search in flops and bytes, and the law that combines the two into one number.

Kinetics (Sadhukhan et al. 2025, arXiv 2506.05333, its section on the cost model) counts

    eFLOPs = flops + I * bytes,   I = flops that the machine does while it reads one byte,

a sum, not a maximum, because the products with the weights are compute-bound and attention is memory-bound,
and the two do not overlap. Attention reads a shared prompt once for all branches, in the paper as here. This
module counts more in one respect: the paper treats the reading of the weights as amortised over a large
batch; here it counts once per step.

Included are multiplications and additions of matrix products (2 per weight or pair of elements) and bytes
read from weights, pages and page summaries. Not included: activations, the softmax, norms, embedding rows,
and the writing of new keys and values. A sliding window counts as full attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tts_kernels.checks import flag, instance, integer, number

if TYPE_CHECKING:
    from tts_kernels.plans.tree_plan import TreePlan

Integers = TypeVar("Integers", int, npt.NDArray[np.int64])

KINETICS_INTENSITY = 562.5 / 2
"""Flops per byte: Kinetics uses 562.5 per element read, on a B200, and its elements have two bytes."""


@dataclass(frozen=True)
class Machine:
    """A machine's peak rates per second: flops, and bytes read."""

    flops: float
    bandwidth: float

    def __post_init__(self) -> None:
        for name in ("flops", "bandwidth"):
            number(name, getattr(self, name), above=0)

    @property
    def intensity(self) -> float:
        """I, flops per byte."""
        return self.flops / self.bandwidth

    def seconds(self, cost: StepCost) -> float:
        """Returns the time if arithmetic and reading do not overlap: eFLOPs over flops per second."""
        return cost.combined(self.intensity) / self.flops

    def roofline_seconds(self, cost: StepCost) -> float:
        """Returns the time if they overlap fully, in each part of the step: a lower bound for any machine."""
        return sum(max(part.flops / self.flops, part.bytes / self.bandwidth) for part in cost.parts())


class Work(NamedTuple):
    """Operations, and bytes read, of one part of a forward."""

    flops: float = 0.0
    bytes: float = 0.0


_NOTHING = Work()


@dataclass(frozen=True)
class StepCost:
    """Flops and bytes read in one step, or with `+` in many.

    Attributes:
        weights: products with the weights of all layers.
        attention: scores and weighted sums over the pages read.
        selection: scores of the page summaries, if attention is sparse.
        logits: products with the LM head.
    """

    weights: Work = _NOTHING
    attention: Work = _NOTHING
    selection: Work = _NOTHING
    logits: Work = _NOTHING

    def parts(self) -> tuple[Work, Work, Work, Work]:
        return self.weights, self.attention, self.selection, self.logits

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts())

    @property
    def bytes(self) -> float:
        return sum(part.bytes for part in self.parts())

    def combined(self, intensity: float = KINETICS_INTENSITY) -> float:
        """Returns Kinetics' cost in eFLOPs.

        intensity: flops per byte; default: the paper's, so that figures of different machines are comparable.
        """
        return self.flops + intensity * self.bytes

    def __add__(self, other: StepCost) -> StepCost:
        pairs = zip(self.parts(), other.parts(), strict=True)
        return StepCost(*[Work(a.flops + b.flops, a.bytes + b.bytes) for a, b in pairs])

    def __sub__(self, other: StepCost) -> StepCost:
        """Returns what was added since `other`."""
        pairs = zip(self.parts(), other.parts(), strict=True)
        return StepCost(*[Work(a.flops - b.flops, a.bytes - b.bytes) for a, b in pairs])


@dataclass(frozen=True)
class ModelShape:
    """The figures of a model that determine its cost.

    Attributes:
        num_layers, num_q_heads, num_kv_heads, head_dim, hidden, vocab: of the model; vocab is 0 without an LM
            head.
        active_parameters: weights that one token is multiplied with, including the LM head, not the embedding
            table.
        parameters: the same over all experts of a mixture; equal to active_parameters without experts.
        weight_bytes, kv_bytes: bytes of a weight, and of an element of K or V.
    """

    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    active_parameters: int
    parameters: int
    weight_bytes: float
    kv_bytes: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("bytes"):
                number(name, value, above=0)
            else:  # stays a Python int, which does not overflow
                object.__setattr__(self, name, integer(name, value, int(name != "vocab")))
        if self.num_q_heads % self.num_kv_heads:
            raise ValueError(
                f"num_q_heads: got {self.num_q_heads}, expected a multiple of num_kv_heads = "
                f"{self.num_kv_heads}"
            )
        if not self.hidden * self.vocab <= self.active_parameters <= self.parameters:
            raise ValueError(
                f"active_parameters: got {self.active_parameters}, expected at least the LM head's "
                f"{self.hidden * self.vocab} and at most parameters = {self.parameters}"
            )

    @classmethod
    def gated(
        cls,
        *,
        num_layers: int,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        hidden: int,
        intermediate: int,
        vocab: int,
        weight_bytes: float = 2,
        kv_bytes: float = 2,
    ) -> ModelShape:
        """Makes the shape of a dense decoder with a gated MLP, as in Llama; counts its weights."""
        num_layers, head_dim = integer("num_layers", num_layers, 1), integer("head_dim", head_dim, 1)
        num_q_heads, num_kv_heads = (
            integer("num_q_heads", num_q_heads, 1),
            integer("num_kv_heads", num_kv_heads, 1),
        )
        hidden, intermediate = integer("hidden", hidden, 1), integer("intermediate", intermediate, 1)
        vocab = integer("vocab", vocab, 0)
        attention = 2 * hidden * (num_q_heads + num_kv_heads) * head_dim
        total = num_layers * (attention + 3 * hidden * intermediate) + hidden * vocab
        heads = num_q_heads, num_kv_heads, head_dim
        return cls(num_layers, *heads, hidden, vocab, total, total, weight_bytes, kv_bytes)

    @property
    def summary_bytes(self) -> float:
        """Bytes of an element of a page summary: stored like the pages, but with at least two bytes."""
        return max(2, self.kv_bytes)


class StepCounts(NamedTuple):
    """What one step computes, whatever the model.

    Attributes:
        tokens: that go through the model.
        logits: number of these whose logits are computed.
        pairs: (query, token) pairs of dense attention.
        columns: (query, page) pairs.
        pages: distinct pages.
        page_size: tokens of one.
    """

    tokens: int
    logits: int
    pairs: int
    columns: int
    pages: int
    page_size: int

    @classmethod
    def of_plan(cls, plan: TreePlan, logits: int | None = None) -> StepCounts:
        """Returns the counts of a plan. logits: default: all its queries."""
        tokens, page_size = plan.num_queries, plan.page_size
        pairs = int(plan.query_position.sum()) + tokens
        columns = int((plan.query_position // page_size).sum()) + tokens
        return cls(tokens, tokens if logits is None else logits, pairs, columns, plan.unique_pages, page_size)


class SparseCounts(NamedTuple):
    """What the sparse layers of a step read.

    Attributes:
        layers: number of sparse layers.
        pairs: (query, page, KV head) triples read, summed over these layers.
        loads: distinct (page, KV head) pairs read, summed over these layers.
        vectors: of a summary, 1 ("mean") or 2 ("minmax", "quarters").
        scored: False if the choice was made without the summaries.
    """

    layers: int
    pairs: float
    loads: float
    vectors: int
    scored: bool = True


def step_cost(shape: ModelShape, counts: StepCounts, sparse: SparseCounts | None = None) -> StepCost:
    """Returns the cost of one step.

    Layers that are not sparse read every page that a query sees, each distinct page once; the sparse ones
    read what `sparse` says, and the summaries of all distinct pages once.

    Raises:
        ValueError: a count is negative, or there are more sparse layers than layers.
    """
    counts, sparse = _checked_counts(shape, counts, sparse)
    head = shape.hidden * shape.vocab
    body = shape.active_parameters - head
    # Each token of a mixture may choose other experts, which adds reads: at most all experts are read.
    body_read = min(shape.parameters - head, counts.tokens * body)
    head_read = head if counts.logits else 0

    pair_flops = 4 * shape.num_q_heads * shape.head_dim  # q k and p v of one (query, token) pair, one layer
    page_bytes = 2 * counts.page_size * shape.head_dim * shape.kv_bytes  # K and V of one KV head
    dense_layers = shape.num_layers - (sparse.layers if sparse else 0)
    flops: float = dense_layers * counts.pairs * pair_flops
    loads: float = dense_layers * counts.pages * shape.num_kv_heads
    selection = _NOTHING
    if sparse:
        flops += sparse.pairs * counts.page_size * pair_flops / shape.num_kv_heads
        loads += sparse.loads
        if sparse.scored:
            size = sparse.layers * sparse.vectors * shape.head_dim
            selection = Work(
                2.0 * size * counts.columns * shape.num_q_heads,
                1.0 * size * counts.pages * shape.num_kv_heads * shape.summary_bytes,
            )
    return StepCost(
        weights=Work(2.0 * body * counts.tokens, body_read * shape.weight_bytes),
        attention=Work(flops, loads * page_bytes),
        selection=selection,
        logits=Work(2.0 * head * counts.logits, head_read * shape.weight_bytes),
    )


def attended_pairs(length: Integers, queries: Integers, page_size: int) -> tuple[Integers, Integers]:
    """Returns the tokens and the pages seen, summed over the last `queries` tokens of a path of `length`."""
    pairs = queries * length - queries * (queries - 1) // 2
    return pairs, _pages_up_to(length, page_size) - _pages_up_to(length - queries, page_size)


def _pages_up_to(length: Integers, page_size: int) -> Integers:
    """Returns the sum of ceil(i / page_size) over i = 1 .. length."""
    full, rest = length // page_size, length % page_size
    return page_size * (full * (full + 1) // 2) + rest * (full + 1)


def _checked_counts(
    shape: ModelShape, counts: StepCounts, sparse: SparseCounts | None
) -> tuple[StepCounts, SparseCounts | None]:
    """Returns the counts as Python numbers: numpy's integers overflow."""
    instance("shape", shape, ModelShape, "make it with ModelShape.gated")
    named = instance("counts", counts, StepCounts, "StepCounts.of_plan makes them")._asdict()
    known = StepCounts(
        *[integer(f"counts.{name}", value, int(name == "page_size")) for name, value in named.items()]
    )
    if sparse is None:
        return known, None
    instance("sparse", sparse, SparseCounts, "name its counts")
    layers, vectors = integer("sparse.layers", sparse.layers, 0, shape.num_layers), sparse.vectors
    if integer("sparse.vectors", vectors) not in (1, 2):
        raise ValueError(f'sparse.vectors: got {vectors}, expected 1 ("mean") or 2 ("minmax", "quarters")')
    pairs, loads = number("sparse.pairs", sparse.pairs, low=0), number("sparse.loads", sparse.loads, low=0)
    scored = flag("sparse.scored", sparse.scored)
    return known, SparseCounts(layers, pairs, loads, int(vectors), scored)
