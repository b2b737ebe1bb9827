"""The plan of one attention call: which pages are read once for which queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import _core
from ..checks import check_storage, instance, integer, require_dense

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TreePlan:
    """Work list of `tree_attention` for T queries on a CPU.

    Queries are numbered depth-first, so the queries below any shared run of pages are contiguous.

    For a query at position p, the segments that cover it list the pages 0 .. p // page_size of its branch
    once each, with -1 in place of evicted ones. They may also list later pages of its path, for another query
    of the block: p decides what is visible.

    Attributes:
        buffer: int32 on the CPU, everything that the kernels read, laid out as in csrc/tree/plan_buffer.h.
        num_queries: T.
        max_columns: the most pages that a query sees.
        page_size: tokens of a page.
        unique_pages: pages of the tree. Shared pages count once, but again for branches that have other holes
            before them. Evicted pages do not count.
        logical_pages: sum over the branches that have queries, as if nothing were shared. Evicted pages do
            not count.
    """

    buffer: torch.Tensor
    num_queries: int
    max_columns: int
    page_size: int
    unique_pages: int
    logical_pages: int

    def __post_init__(self) -> None:
        if type(self.buffer) is not torch.Tensor:
            require_dense("plan.buffer", self.buffer, fake=True)
        for name in _COUNTS:
            if type(value := getattr(self, name)) is not int or value < 0:
                integer(f"plan.{name}", value, 0)

    @property
    def query_order(self) -> torch.Tensor:
        """[T]: row of q for each query."""
        return self._part(0)

    @property
    def query_position(self) -> torch.Tensor:
        """[T]: position of each query on its path; it sees position + 1 tokens."""
        return self._part(1)

    @property
    def pages(self) -> torch.Tensor:
        """[N]: physical pages of all segments; -1 is an evicted page, which nobody attends to."""
        return self._part(2)

    @property
    def segments(self) -> torch.Tensor:
        """[S, 5]: (offset into pages, first page on the path, number of pages, first query, end of queries).

        These pages of the path are the same for all these queries. No segment crosses a multiple of
        TILE_PAGES on the path.
        """
        return self._part(3).view(-1, 5)

    @property
    def blocks(self) -> torch.Tensor:
        """[K, 4]: (first query, end of queries, first segment, end of segments).

        Blocks cover the queries in order; the segments of a block are sorted by (tile, first query, first
        page).
        """
        return self._part(4).view(-1, 4)

    @property
    def branches(self) -> torch.Tensor:
        """[B, 3]: (first query, end of queries, leading pages shared with the previous branch), depth-first.

        Covers the branches that have queries.
        """
        return self._part(5).view(-1, 3)

    def _part(self, index: int) -> torch.Tensor:
        queries, pages, segments, blocks, branches, _, _, padding = self.buffer[:_HEADER].tolist()
        sizes = [_HEADER, queries, queries, pages, 5 * segments, 4 * blocks, 3 * branches, padding]
        return torch.split(self.buffer, sizes)[index + 1]


_HEADER = 8  # ints
_COUNTS = ("num_queries", "max_columns", "page_size", "unique_pages", "logical_pages")


def packed_plan(plan: Any) -> TreePlan:
    """Returns the plan if it is one for packed pages; raises otherwise."""
    remedy = (
        "make it with tts_kernels.plan, or for plain pages a DevicePlan with DevicePlanner(...).update(...)"
    )
    return instance("plan", plan, TreePlan, remedy)


def plan(
    block_tables: torch.Tensor | Int32Array,
    lengths: torch.Tensor | Int32Array,
    query_lens: torch.Tensor | Int32Array | None = None,
    *,
    page_size: int = 16,
    query_block: int = 32,
) -> TreePlan:
    """Finds what branches share, from equal leading pages of their block tables, and plans to read it once.

    Accepts any forest: several roots, no sharing, equal tables, branches that share a page but see different
    parts of it.

    Args:
        block_tables: int32 [B, P]. Position p of branch b is in page `block_tables[b, p // page_size]`. Only
            the first ceil(length / page_size) entries of a row are read. -1 marks an evicted page
            (`KVTree.evict`), which must not hold a query or the last token. Branches share pages up to the
            first hole that they do not have in common.
        lengths: int32 [B]. Tokens of each branch, including the new ones.
        query_lens: int32 [B]. The last `query_lens[b]` tokens of branch b are its queries; 0 leaves the
            branch out. Default: 1 each. Rows of q are grouped by branch, in the order of the arguments.
        page_size: tokens of a page.
        query_block: maximum number of queries in a block.

    Raises:
        TypeError: an argument is not an int32 CPU tensor or array.
        ValueError: a shape, a length, a query length or a page id is out of range.
    """
    if type(block_tables) is not np.ndarray or block_tables.dtype != np.int32:
        block_tables = int32_array("block_tables", block_tables)
    if type(lengths) is not np.ndarray or lengths.dtype != np.int32:
        lengths = int32_array("lengths", lengths)
    if query_lens is not None and (type(query_lens) is not np.ndarray or query_lens.dtype != np.int32):
        query_lens = int32_array("query_lens", query_lens)
    buffer, *counts = _core.plan(block_tables, lengths, query_lens, page_size, query_block)
    queries, columns, unique_pages, logical_pages = counts
    return TreePlan(torch.from_numpy(buffer), queries, columns, int(page_size), unique_pages, logical_pages)


def int32_array(name: str, value: torch.Tensor | Int32Array) -> Int32Array:
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise TypeError(f"{name}: got a tensor on {value.device}, expected the CPU; pass {name}.cpu()")
        require_dense(name, value)
        check_storage(name, value)
        value = value.detach().numpy()
    if not isinstance(value, np.ndarray) or value.dtype != np.int32:
        got = f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name}: got {got}, expected an int32 tensor or array; convert it first")
    return np.asarray(value, order="C")
