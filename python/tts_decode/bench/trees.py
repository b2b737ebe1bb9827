"""The trees that attention is measured on, and the minimum cost over each."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PAGE = 16


class Heads(NamedTuple):
    """Query heads, KV heads and the dimension of each, for K and for V."""

    q: int
    kv: int
    d: int = 128

    def __str__(self) -> str:
        return "/".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Heads:
        """Parses "32/8/128". Raises ValueError."""
        numbers = [int(part) for part in text.split("/") if part.isdecimal()]
        if text.count("/") != 2 or len(numbers) != 3 or 0 in numbers or numbers[0] % numbers[1]:
            raise ValueError(
                f"heads: got {text!r}, expected query heads/KV heads/head_dim such as 32/8/128, the first a "
                "multiple of the second"
            )
        return cls(*numbers)


class Tree(NamedTuple):
    """A forest in which every node of a level has the same number of children; its leaves are the queries.

    nodes: of each level, from the roots. tokens: of each node of the level, a multiple of `PAGE`. item_bytes:
    of an element of the keys, values, queries and outputs.
    """

    nodes: tuple[int, ...]
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return "/".join(",".join(map(str, numbers)) for numbers in self)

    @classmethod
    def parse(cls, text: str) -> Tree:
        """Parses "1,4,64/2048,128,32": nodes of each level / tokens per node. Raises ValueError."""
        parts = [side.split(",") for side in text.split("/")]
        good = len(parts) == 2 and len(parts[0]) == len(parts[1])
        if not good or not all(part.isdecimal() and int(part) for side in parts for part in side):
            raise ValueError(
                f"tree: got {text!r}, expected nodes/tokens of each level from the root, such as "
                "1,4,64/2048,128,32: a prompt of 2,048 tokens, 4 steps of 128 below it, and below those 64 "
                "leaves of 32"
            )
        nodes, tokens = (tuple(map(int, side)) for side in parts)
        if any(below % above for above, below in pairwise(nodes)):
            raise ValueError(f"tree: got {text!r}, expected nodes that are multiples of those above them")
        if any(count % PAGE for count in tokens):
            raise ValueError(f"tree: got {text!r}, expected multiples of the page size, {PAGE}, for tokens")
        return cls(nodes, tokens)

    @property
    def queries(self) -> int:
        return self.nodes[-1]

    @property
    def path_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def unique_tokens(self) -> int:
        return sum(n * t for n, t in zip(self.nodes, self.tokens, strict=True))

    def kv_bytes(self, heads: Heads, item_bytes: int = 2) -> int:
        """Returns the bytes of all nodes' K and V, once: sum of tokens * kv_heads * (D_k + D_v) * bytes."""
        return self.unique_tokens * heads.kv * 2 * heads.d * item_bytes

    def min_bytes(self, heads: Heads, item_bytes: int = 2) -> int:
        """Returns the bytes of reading keys, values and queries, and writing outputs, once each."""
        return self.kv_bytes(heads, item_bytes) + self.queries * heads.q * 2 * heads.d * item_bytes

    def flops(self, heads: Heads) -> int:
        """Returns 2 * (D_k + D_v) for each pair of a token and a query head of a leaf below it."""
        return 2 * 2 * heads.d * self.queries * heads.q * self.path_tokens

    def level_pages(self, seed: int = 0) -> list[npt.NDArray[np.int32]]:
        """Returns the pages of each level's nodes, [nodes, pages of a node], scattered at random.

        Node i of a level is above the leaves i * T / nodes .. (i + 1) * T / nodes - 1 of the T leaves.
        """
        scattered = np.random.default_rng(seed).permutation(self.unique_tokens // PAGE).astype(np.int32)
        levels, begin = [], 0
        for nodes, tokens in zip(self.nodes, self.tokens, strict=True):
            count = nodes * tokens // PAGE
            levels.append(scattered[begin : begin + count].reshape(nodes, -1))
            begin += count
        return levels

    def block_tables(self, levels: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
        """Returns the pages of each leaf's path, [queries, pages]."""
        return np.concatenate([level.repeat(self.queries // len(level), axis=0) for level in levels], axis=1)


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
