"""The plan of one attention call: which pages are read once for which queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .. import _core
from ..checks import check_storage, integer, require_dense

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TreePlan:
    """Work list of `tree_attention` for T queries, as contiguous int32 CPU tensors.

    Queries are numbered depth-first, so that the queries below any shared run of pages are contiguous.

    For a query at position p, the segments that cover it list the pages 0 .. p // page_size of its branch
    once each, with -1 in place of evicted ones. They may list later pages of its path as well, for another
    query of the block: p decides what is visible.

    Attributes:
        query_order: [T] row of q of each query.
        query_position: [T] position of each query on its path; it sees position + 1 tokens.
        pages: [N] physical pages of all segments; -1: an evicted page, which nobody attends to.
        segments: [S, 5] (offset into pages, first page on the path, number of pages, first query, end of
            queries). These pages of the path are the same for all these queries. No segment crosses a
            multiple of TILE_PAGES on the path.
        blocks: [K, 4] (first query, end of queries, first segment, end of segments). Blocks cover the queries
            in order; the segments of a block are sorted by (tile, first query, first page).
        branches: [B, 3] of the branches that have queries, depth-first: (first query, end of queries, leading
            pages shared with the branch before).
        max_columns: most pages that a query sees.
        num_queries: T.
        page_size: tokens of a page.
        unique_pages: pages of the tree, shared ones counted once, but again for branches that have other
            holes before them. logical_pages: sum over the branches that have queries, as if nothing were
            shared. Evicted pages count in neither.
    """

    query_order: torch.Tensor
    query_position: torch.Tensor
    pages: torch.Tensor
    segments: torch.Tensor
    blocks: torch.Tensor
    branches: torch.Tensor
    max_columns: int
    num_queries: int
    page_size: int
    unique_pages: int
    logical_pages: int

    def __post_init__(self) -> None:
        for name in ("query_order", "query_position", "pages", "segments", "blocks", "branches"):
            require_dense(name, getattr(self, name), fake=True)
        for name in ("max_columns", "num_queries", "page_size", "unique_pages", "logical_pages"):
            integer(f"plan.{name}", getattr(self, name), 0)
        if self.query_order.shape != (self.num_queries,):
            raise ValueError(
                f"plan.num_queries: got {self.num_queries}, expected the length of query_order, of shape "
                f"{list(self.query_order.shape)}"
            )


def plan(
    block_tables: torch.Tensor | Int32Array,
    lengths: torch.Tensor | Int32Array,
    query_lens: torch.Tensor | Int32Array | None = None,
    *,
    page_size: int = 16,
    query_block: int = 32,
) -> TreePlan:
    """Finds what branches share, from equal leading pages of their block tables, and plans to read it once.

    Any forest will do: several roots, no sharing, equal tables, branches that share a page but see different
    parts of it.

    Args:
        block_tables: int32 [B, P]. Position p of branch b is in page `block_tables[b, p // page_size]`. Only
            the first ceil(length / page_size) entries of a row are read. -1 there is an evicted page
            (`KVTree.evict`), which must not hold a query or the last token. Branches share pages up to the
            first hole that they do not have in common.
        lengths: int32 [B]. Tokens of each branch, the new ones included.
        query_lens: int32 [B]. The last `query_lens[b]` tokens of branch b are its queries; 0 leaves it out.
            Default: 1 each. Rows of q are branch after branch in the order of the arguments.
        page_size: tokens of a page.
        query_block: most queries of a block.

    Raises:
        TypeError: an argument is not an int32 CPU tensor or array.
        ValueError: a shape, a length, a query length or a page id is out of range.
    """
    tables = int32_array("block_tables", block_tables)
    queries = (
        np.ones(tables.shape[:1], np.int32) if query_lens is None else int32_array("query_lens", query_lens)
    )
    *arrays, max_columns, unique_pages, logical_pages = _core.plan(
        tables, int32_array("lengths", lengths), queries, page_size, query_block
    )
    order, position, pages, segments, blocks, branches = (torch.from_numpy(array) for array in arrays)
    return TreePlan(
        query_order=order,
        query_position=position,
        pages=pages,
        segments=segments,
        blocks=blocks,
        branches=branches,
        max_columns=max_columns,
        num_queries=len(order),
        page_size=page_size,
        unique_pages=unique_pages,
        logical_pages=logical_pages,
    )


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
