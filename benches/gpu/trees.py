"""The trees that the GPU benchmarks run on, and what attention over each must cost at least."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PAGE = 16
HEAD_DIM = 128
ITEM_BYTES = 2  # bfloat16


class Heads(NamedTuple):
    """Query heads and KV heads."""

    q: int
    kv: int

    def __str__(self) -> str:
        return f"{self.q}/{self.kv}"


class Tree(NamedTuple):
    """A forest in which every node of a level has equally many children; its leaves are the queries.

    nodes: of each level, from the roots. tokens: of each node of the level, a multiple of `PAGE`.
    """

    nodes: tuple[int, ...]
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return "/".join(",".join(map(str, numbers)) for numbers in self)

    @property
    def queries(self) -> int:
        return self.nodes[-1]

    @property
    def path_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def unique_tokens(self) -> int:
        return sum(n * t for n, t in zip(self.nodes, self.tokens, strict=True))

    def kv_bytes(self, heads: Heads) -> int:
        """Keys and values of every node once: sum of tokens * kv_heads * (D_k + D_v) * bytes."""
        return self.unique_tokens * heads.kv * 2 * HEAD_DIM * ITEM_BYTES

    def min_bytes(self, heads: Heads) -> int:
        """Every key and value read once, every query read and every output written once."""
        return self.kv_bytes(heads) + self.queries * heads.q * 2 * HEAD_DIM * ITEM_BYTES

    def flops(self, heads: Heads) -> int:
        """2 * (D_k + D_v) for each pair of a token and a query head of a leaf below it."""
        return 2 * 2 * HEAD_DIM * self.queries * heads.q * self.path_tokens

    def level_pages(self, seed: int = 0) -> list[npt.NDArray[np.int32]]:
        """Pages of the nodes of each level, [nodes, pages of a node], scattered over the pool at random.

        Node i of a level lies above the leaves i * T / nodes .. (i + 1) * T / nodes - 1 of the T leaves.
        """
        scattered = np.random.default_rng(seed).permutation(self.unique_tokens // PAGE).astype(np.int32)
        levels, begin = [], 0
        for nodes, tokens in zip(self.nodes, self.tokens, strict=True):
            count = nodes * tokens // PAGE
            levels.append(scattered[begin : begin + count].reshape(nodes, -1))
            begin += count
        return levels

    def block_tables(self, levels: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
        """Pages of each leaf's path, [queries, pages]."""
        return np.concatenate([level.repeat(self.queries // len(level), axis=0) for level in levels], axis=1)


class Ceilings(NamedTuple):
    """bandwidth: bytes/s of a copy on the device, read and written. rate: flop/s of a bfloat16 product."""

    bandwidth: float
    rate: float

    def floor(self, num_bytes: int, flops: int) -> float:
        """Seconds that no call can undercut: max(bytes / bandwidth, flops / rate)."""
        return max(num_bytes / self.bandwidth, flops / self.rate)


HEADS = [Heads(32, 8), Heads(32, 32), Heads(64, 8), Heads(16, 1)]  # in the order of measuring
TREES = [
    Tree((1, 1024), (2048, 32)),
    Tree((1, 16, 64), (1024, 256, 32)),
    Tree((1, 4, 16, 512), (1024, 256, 128, 32)),
    Tree((1, 2, 4, 8, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16, 16, 16, 16)),
    Tree((1, 4, 16, 64, 256), (1024, 128, 128, 128, 128)),
    Tree((1, 32), (1024, 8192)),
    Tree((1, 8, 64), (32768, 1024, 256)),
    Tree((16, 128), (2048, 64)),  # a forest of 16
    Tree((256,), (1024,)),  # nothing shared
]
