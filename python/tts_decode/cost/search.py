"""Predicts the cost of a search from its sizes: branches that fork from one prompt and grow side by side."""

from __future__ import annotations

from typing import NamedTuple

from tts_kernels.checks import choice, flag, instance, integer

from .forward import ModelShape, SparseCounts, StepCost, StepCounts, attended_pairs, step_cost

SHARES = ("branch", "tree")
_MOST = 2**31 - 1  # tokens, branches: the limit of block tables and slots
_MOST_STEPS = 10**6  # each is computed: about ten seconds


class SparseBudget(NamedTuple):
    """How the sparse layers choose pages, as `select_pages` does with its defaults.

    Attributes:
        pages: how many a query reads per KV head; it always reads the first page of the prompt and its own
            tail, the pages younger than the fork.
        share: "tree": one choice among the shared pages for all branches; "branch": one each. How far the
            choices of siblings agree is not known beforehand: they are treated as independent, which
            overstates the pages read if siblings agree.
        summaries: "mean", "minmax" or "quarters".
        dense_layers: first layers that stay dense.
        keep_tail: False if the tail is chosen from like all other pages; a branch then takes the same share
            of the shared pages and of its own.
    """

    pages: int
    share: str = "branch"
    summaries: str = "mean"
    dense_layers: int = 0
    keep_tail: bool = True


class SearchCost(NamedTuple):
    """prompt: its forward. decode: all later steps. last: the last and longest of them. steps: how many."""

    prompt: StepCost
    decode: StepCost
    last: StepCost
    steps: int

    @property
    def total(self) -> StepCost:
        return self.prompt + self.decode


def search_cost(
    shape: ModelShape,
    *,
    prompt: int,
    branches: int,
    generated: int,
    budget: SparseBudget | None = None,
    page_size: int = 16,
    chunk: int = 512,
) -> SearchCost:
    """Returns the cost of `branches` branches that fork at the end of a prompt and generate equal lengths.

    It is the sum over the steps, each counted as the decoder counts it: a step feeds one token per branch;
    the prompt goes through once, in chunks, with dense attention. All branches share its full pages; if there
    are several, its partly filled last page is copied for each.

    Args:
        prompt, generated: tokens, >= 1; the latter per branch.
        budget: None for dense attention. If it covers all pages of a step, that step is dense.
        chunk: tokens of the prompt in one forward.

    Raises:
        TypeError, ValueError: an argument is out of range, or the search has more than a million steps.
    """
    prompt, branches = integer("prompt", prompt, 1, _MOST), integer("branches", branches, 1, _MOST)
    generated, chunk = integer("generated", generated, 1, _MOST_STEPS), integer("chunk", chunk, 1, _MOST)
    page_size = integer("page_size", page_size, 1, _MOST)
    if prompt > chunk * _MOST_STEPS:
        raise ValueError(
            f"prompt: got {prompt}, expected at most {_MOST_STEPS} chunks of {chunk} tokens; "
            "take larger chunks"
        )
    instance("shape", shape, ModelShape, "make it with ModelShape.gated")
    if budget is not None:
        budget = _checked_budget(shape, instance("budget", budget, SparseBudget, "name its fields"))
    prefill = StepCost()
    for begin in range(0, prompt, chunk):
        end = min(begin + chunk, prompt)
        pairs, columns = attended_pairs(end, end - begin, page_size)
        counts = StepCounts(end - begin, int(end == prompt), pairs, columns, -(-end // page_size), page_size)
        prefill += step_cost(shape, counts)
    decode = last = StepCost()
    # The prompt's logits give each branch its first token; the last one generated is never fed.
    for length in range(prompt + 1, prompt + generated):
        last = _decode_step(shape, prompt, length, branches, budget, page_size)
        decode += last
    return SearchCost(prefill, decode, last, generated - 1)


def _decode_step(
    shape: ModelShape, prompt: int, length: int, branches: int, budget: SparseBudget | None, page_size: int
) -> StepCost:
    """Returns the cost of one token for each of several branches of `length` tokens, including that one."""
    columns = -(-length // page_size)
    shared = prompt // page_size if branches > 1 else columns
    own = columns - shared
    pages = shared + branches * own
    counts = StepCounts(branches, branches, branches * length, branches * columns, pages, page_size)
    if budget is None or budget.pages >= columns:
        return step_cost(shape, counts)
    own_read: float = own
    if budget.keep_tail or not own:
        # Each branch always reads the first shared page, and without own pages the last one too.
        chosen: float = min(shared, max(budget.pages - own, 1 if own else 2))
    else:
        read = max(budget.pages, 2)
        chosen, own_read = read * shared / columns, read * own / columns
    distinct: float = chosen
    if budget.share == "branch" and shared:
        distinct = shared * (1 - (1 - chosen / shared) ** branches)
    layers = shape.num_layers - budget.dense_layers
    heads = layers * shape.num_kv_heads
    vectors = 1 if budget.summaries == "mean" else 2
    selected = SparseCounts(
        layers, heads * branches * (chosen + own_read), heads * (distinct + branches * own_read), vectors
    )
    return step_cost(shape, counts, selected)


def _checked_budget(shape: ModelShape, budget: SparseBudget) -> SparseBudget:
    pages, dense = (
        integer("budget.pages", budget.pages, 1),
        integer("budget.dense_layers", budget.dense_layers, 0),
    )
    choice("budget.share", budget.share, SHARES)
    choice("budget.summaries", budget.summaries, ("mean", "minmax", "quarters"))
    if dense > shape.num_layers:
        raise ValueError(f"budget.dense_layers: got {dense}, but the model has {shape.num_layers} layers")
    flag("budget.keep_tail", budget.keep_tail)
    return SparseBudget(pages, budget.share, budget.summaries, dense, budget.keep_tail)
