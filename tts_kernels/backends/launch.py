"""Launch arguments of the kernels for plain pages: the work list of a DevicePlan, and options."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .._core import TAIL_TOKENS
from ..checks import integer, shown


class WorkCapacity(NamedTuple):
    """Upper limits of a work list (csrc/common/work_records.h), each a multiple of 16.

    Attributes:
        items: tiles of rows over runs of pages.
        queries: queries.
        merges: pairs of a query and a partial result.
        pages: entries of the items' page lists.
        partials: rows of partial results for one KV head.
    """

    items: int
    queries: int
    merges: int
    pages: int
    partials: int

    @classmethod
    def for_queries(
        cls,
        num_queries: int,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        num_pages: int,
        page_size: int,
        num_sms: int = 132,
    ) -> WorkCapacity:
        """Returns room for decode steps of up to `num_queries` branches over a pool of `num_pages` pages.

        The estimate allows paths with up to eight forks, and enough splits to keep a device of `num_sms`
        multiprocessors busy: about four tiles of 128 rows each. A plan that does not fit uses fewer splits,
        and raises CapacityError if it still does not fit.

        Raises:
            TypeError, ValueError: an argument is no positive integer, or num_q_heads is no multiple of
                num_kv_heads.
        """
        check_sizes(
            num_queries=num_queries,
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            num_pages=num_pages,
            page_size=page_size,
            num_sms=num_sms,
        )
        group = check_group(num_q_heads, num_kv_heads)
        splits = 4 * -(-num_sms // num_kv_heads)
        items = 4 * num_queries * -(-group // 64) + splits
        partials = 8 * num_queries * group + 128 * splits
        pages = num_pages + num_queries * (64 + -(-TAIL_TOKENS // page_size))
        return cls(*map(round_up, (items, num_queries, partials // group, pages, partials)))

    def work_ints(self) -> int:
        """Returns the size of the work list in int32 elements."""
        return WorkLayout.of(self).end

    def partial_floats(self, num_kv_heads: int, head_dim: int) -> int:
        """Returns the size of the partial results (outputs and log-sum-exps) in float32 elements."""
        return num_kv_heads * self.partials * (head_dim + 1)

    def workspace_bytes(self, num_kv_heads: int, head_dim: int) -> int:
        """Returns the size in bytes of a workspace that holds both."""
        return 4 * (round_up(self.work_ints()) + self.partial_floats(num_kv_heads, head_dim))


class WorkLayout(NamedTuple):
    """Offsets of a work list's parts in its int32 buffer: WorkLayout of csrc/common/work_records.h."""

    items: int
    query_order: int
    query_position: int
    query_shared: int
    merge_begin: int
    merge_base: int
    pages: int
    end: int

    @classmethod
    def of(cls, capacity: WorkCapacity) -> WorkLayout:
        items = 16
        query_order = items + 8 * capacity.items
        query_position = query_order + capacity.queries
        query_shared = query_position + capacity.queries
        merge_begin = query_shared + capacity.queries
        merge_base = merge_begin + capacity.queries + 16
        pages = merge_base + capacity.merges
        end = pages + capacity.pages
        return cls(items, query_order, query_position, query_shared, merge_begin, merge_base, pages, end)


class WorkLaunch(NamedTuple):
    """A work list as the kernels take it; see `DevicePlan`."""

    work: Tensor
    partials: Tensor
    capacity: WorkCapacity
    num_items: int
    num_merges: int


class AttentionOptions(NamedTuple):
    """Options of an attention call on plain pages.

    Attributes:
        scale: factor of the logits.
        window: positions that a query sees, 0 for all.
        soft_cap: cap of the logits, 0.0 for none.
        sinks: float32 [num_q_heads], contiguous: a logit for each head that has no value.
        slopes: float32 [num_q_heads], contiguous: a logit loses this much per position of distance.
        chunk: positions of a chunk, 0 for none.
    """

    scale: float
    window: int
    soft_cap: float
    sinks: Tensor | None = None
    slopes: Tensor | None = None
    chunk: int = 0


class SelectOptions(NamedTuple):
    """How `select_top_pages` chooses; see there. Tensors are int32 [T] on the device of the scores."""

    budget: int | Tensor
    top_p: float | None
    sink: int
    recent: int
    tail_begin: Tensor | None
    groups: Tensor | None


def round_up(n: int) -> int:
    """Rounds up to a capacity: a positive multiple of 16."""
    return -(-max(n, 1) // 16) * 16


def check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int):
            raise TypeError(f"{name}: got {shown(value)}, expected an int")
        integer(name, value, 1, 2**31 - 1)


def check_group(num_q_heads: int, num_kv_heads: int) -> int:
    """Returns the number of query heads per KV head."""
    if num_q_heads % num_kv_heads:
        raise ValueError(
            f"num_q_heads: got {num_q_heads}, expected a multiple of num_kv_heads = {num_kv_heads}"
        )
    return num_q_heads // num_kv_heads
