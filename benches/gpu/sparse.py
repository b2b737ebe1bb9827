"""Compares a step of sparse attention, with scoring and selection, with dense ones on the same tree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tts_decode.bench.trees import PAGE, Heads, Tree

from benches.gpu import baselines
from benches.gpu.baselines import Call, Case, LeftOutError, graphed, make_case, planner
from benches.gpu.timing import measure
from tts_kernels import Selection, reference, score_pages, select_pages, select_top_pages, tree_attention

CONTEXT = 32768
SHARE = 8  # one page in so many is read
DENSE: dict[str, Callable[[Case], Call]] = {
    "dense": partial(baselines.ours, on="triton"),
    "dense graph": lambda case: graphed(baselines.ours(case, on="triton")),
    "flashinfer decode": partial(baselines.flashinfer_decode, tensor_cores=False),
    "flashinfer decode, tensor cores": partial(baselines.flashinfer_decode, tensor_cores=True),
    "flashinfer cascade": baselines.flashinfer_cascade,
}


def sparse_tree(branches: int) -> Tree:
    """A prompt of CONTEXT tokens, and a page of its own below it for each branch."""
    return Tree((1, branches), (CONTEXT, PAGE))


def relative_error(case: Case, selection: Selection, out: torch.Tensor) -> float:
    """Of the first branch, against the float64 reference over the pages that it chose."""
    table = case.index(case.tables[0])
    k, v = (pages[table].transpose(1, 2).flatten(0, 1) for pages in (case.k_pages, case.v_pages))
    chosen = selection.to_bools(len(table))[:, :1]
    with torch.device(case.q.device):
        own = torch.arange(len(table))[None]
        length, one = torch.tensor([len(k)]), torch.tensor([1])
        true, *_ = reference.tree_attention(case.q[:1], k, v, own, length, one, chosen=chosen)
    return float((out[:1].double() - true).norm() / true.norm())


def sparse_step(branches: int, heads: Heads) -> dict[str, Any]:
    """Times of a step over means of pages at a budget of one page in SHARE, and of its parts."""
    tree = sparse_tree(branches)
    case = make_case(tree, heads, "cuda")
    plan = planner(case).update(case.tables, case.lengths)
    summaries = case.k_pages.float().mean(2, keepdim=True).to(case.k_pages.dtype)
    budget = tree.path_tokens // PAGE // SHARE
    scores = score_pages(case.q, summaries, plan)
    selection = select_top_pages(scores, plan, budget)
    attend = partial(tree_attention, case.q, case.k_pages, case.v_pages, plan)

    def step() -> torch.Tensor:
        return attend(selection=select_pages(case.q, summaries, plan, budget))[0]

    calls: dict[str, Callable[[], object]] = {
        "sparse": step,
        "sparse graph": graphed(step),
        "score_pages": partial(score_pages, case.q, summaries, plan),
        "select_top_pages": partial(select_top_pages, scores, plan, budget),
        "tree_attention": partial(attend, selection=selection),
    }
    left_out = {}
    for name, method in DENSE.items():
        try:
            calls[name] = method(case)
            calls[name]()
        except (LeftOutError, ImportError) as reason:
            calls.pop(name, None)
            left_out[name] = str(reason)
        except Exception as reason:  # whatever another package raises on a case that it does not serve
            calls.pop(name, None)
            left_out[name] = f"{type(reason).__name__}: {str(reason).splitlines()[0][:200]}"
    error = relative_error(case, selection, step())
    times = {name: t._asdict() for name, t in measure(calls).items()}
    return {
        "tree": str(tree),
        "heads": str(heads),
        "budget": budget,
        "error": error,
        "methods": times,
        "left_out": left_out,
    }
