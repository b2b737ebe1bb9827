"""Seconds of a tensor-parallel group's decode step, term by term, and the KV that fits into the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tts_decode.cost import Machine, ModelShape, StepCost

ALL_REDUCES = 2  # of a layer: after attention, after the MLP
ACTIVATION_BYTES = 2  # bfloat16


@dataclass(frozen=True)
class Cluster:
    """A GPU and its links. memory: bytes of a GPU. usable: share of it for weights and KV. link: bytes a
    second that a GPU sends to the others of its node. latency: seconds of an all-reduce of no bytes. host:
    bytes a second from the host's memory to its GPU. node: GPUs of a node, at most in a group."""

    machine: Machine
    memory: float
    usable: float
    link: float
    latency: float
    host: float
    node: int


H100S = Cluster(
    machine=Machine(flops=989e12, bandwidth=3.35e12),
    memory=80e9,
    usable=0.9,
    link=450e9,
    latency=10e-6,
    host=64e9,
    node=8,
)


class Terms(NamedTuple):
    """Seconds of a step. They follow one another: the law of `tts_decode.cost` is a sum.

    flops: all products, attention's too. weights, kv: read from the GPU's memory. all_reduce: between the
    GPUs of a group. streamed: weights read from the host's memory.
    """

    flops: float
    weights: float
    kv: float
    all_reduce: float = 0.0
    streamed: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)

    def plus(self, other: Terms) -> Terms:
        return Terms(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Terms:
        return Terms(*(factor * value for value in self))


@dataclass(frozen=True)
class Group:
    """GPUs that hold one model: heads and columns of the MLP are divided among them, and so is all they read.

    gpus: how many. streamed: bytes of the weights that lie in the hosts' memory and are read from there in
    each step.
    """

    cluster: Cluster
    shape: ModelShape
    gpus: int
    streamed: float = 0.0

    def __post_init__(self) -> None:
        if self.shape.num_kv_heads % self.gpus or self.gpus > self.cluster.node:
            raise ValueError(
                f"gpus: got {self.gpus}, expected a divisor of the {self.shape.num_kv_heads} KV heads, at "
                f"most {self.cluster.node}"
            )

    @property
    def stored_bytes(self) -> float:
        """All weights, the embedding table too, which no product reads."""
        table = self.shape.hidden * self.shape.vocab
        return (self.shape.parameters + table) * self.shape.weight_bytes

    @property
    def kv_room(self) -> float:
        """Bytes left for KV; below 0 where the weights alone do not fit."""
        return self.gpus * self.cluster.memory * self.cluster.usable - self.stored_bytes + self.streamed

    def terms(self, cost: StepCost, rows: int) -> Terms:
        """rows: tokens that go through the model."""
        rates, gpus = self.cluster.machine, self.gpus
        read = cost.weights.bytes + cost.logits.bytes - self.streamed
        return Terms(
            flops=cost.flops / (gpus * rates.flops),
            weights=read / (gpus * rates.bandwidth),
            kv=(cost.attention.bytes + cost.selection.bytes) / (gpus * rates.bandwidth),
            all_reduce=self.all_reduce(rows),
            streamed=self.streamed / (gpus * self.cluster.host),
        )

    def all_reduce(self, rows: int) -> float:
        """Seconds of a step's all-reduces of `rows` hidden states, by a ring: each GPU sends
        2 (gpus - 1) / gpus of a message."""
        if self.gpus == 1:
            return 0.0
        message = rows * self.shape.hidden * ACTIVATION_BYTES
        sent = 2 * (self.gpus - 1) / self.gpus * message
        return ALL_REDUCES * self.shape.num_layers * (self.cluster.latency + sent / self.cluster.link)
