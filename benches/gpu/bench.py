"""Compares attention over trees on a GPU with other kernels and its limits: python -m benches.gpu.bench

Every result is appended to a file of JSON lines immediately, so that an early end of the run loses nothing.
Every method's output is compared with the float64 reference first; a wrong method is not timed.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor
from tts_decode.bench.trees import HEADS, PAGE, TREES, Heads, Tree

from benches.gpu import baselines
from benches.gpu.baselines import Call, Case, LeftOutError, forced, graphed, make_case, planner
from benches.gpu.sparse import sparse_step
from benches.gpu.timing import ceilings, host_seconds, measure, no_host_sync
from tts_kernels import WorkCapacity, append_kv, copy_pages, reference, tree_attention

BACKENDS = ("triton", "cuda")
# bfloat16 outputs and probabilities carry an error of 2^-9 each, merged bfloat16 partials some more; a page
# of 16 tokens missing from the longest path, 34,048, is an error of 2e-2.
WRONG = 1e-2
FLEX_SECONDS = 8  # FlexAttention compiles anew for every shape; it takes part while each entry has that long

METHODS: dict[str, Callable[[Case], Call]] = {
    **{backend: partial(baselines.ours, on=backend) for backend in BACKENDS},
    **{f"{backend} graph": lambda c, b=backend: graphed(baselines.ours(c, b)) for backend in BACKENDS},
    "flashinfer decode": partial(baselines.flashinfer_decode, tensor_cores=False),
    "flashinfer decode, tensor cores": partial(baselines.flashinfer_decode, tensor_cores=True),
    "flashinfer cascade": baselines.flashinfer_cascade,
    "flex_attention": baselines.flex_attention,
    "sdpa, replicated": baselines.sdpa,
}


def expected(case: Case, branches: list[int]) -> Tensor:
    """float64 outputs [branches, q_heads, d], each branch from its own pages only."""
    outs = []
    for branch in branches:
        table = case.index(case.tables[branch])
        k, v = (pages[table].transpose(1, 2).flatten(0, 1) for pages in (case.k_pages, case.v_pages))
        with torch.device(case.q.device):
            own = torch.arange(len(table))[None]
            length, one = torch.tensor([len(k)]), torch.tensor([1])
            out, *_ = reference.tree_attention(case.q[branch : branch + 1], k, v, own, length, one)
        outs.append(out)
    return torch.cat(outs)


def relative_error(out: Tensor, true: Tensor) -> float:
    return float((out.double() - true).norm() / true.norm())


def prepare(case: Case, left_out: dict[str, str]) -> tuple[dict[str, Call], dict[str, Any]]:
    """The methods that serve the case and are right, and what is known of all of them so far."""
    branches = sorted({0, case.tree.queries // 2, case.tree.queries - 1})
    true = expected(case, branches)
    calls: dict[str, Call] = {}
    results: dict[str, Any] = {name: {"left_out": reason} for name, reason in left_out.items()}
    for name, method in METHODS.items():
        if name in left_out:
            continue
        try:
            call = method(case)
            error = relative_error(call()[branches], true)
        except (LeftOutError, ImportError) as reason:
            results[name] = {"left_out": str(reason)}
        except Exception as reason:  # whatever another package raises on a case that it does not serve
            results[name] = {"left_out": f"{type(reason).__name__}: {str(reason).splitlines()[0][:200]}"}
        else:
            results[name] = {"error": error}
            if error < WRONG:  # never true of NaN
                calls[name] = call
            else:
                results[name]["left_out"] = f"wrong: relative error {error:.1e}"
    return calls, results


def attention(tree: Tree, heads: Heads, left_out: dict[str, str]) -> dict[str, Any]:
    case = make_case(tree, heads, "cuda")
    calls, results = prepare(case, left_out)
    for name, times in measure(calls).items():
        results[name] |= times._asdict()
    return {
        "tree": str(tree),
        "heads": str(heads),
        "queries": tree.queries,
        "levels": len(tree.nodes),
        "kv_bytes": tree.kv_bytes(heads),
        "min_bytes": tree.min_bytes(heads),
        "flops": tree.flops(heads),
        "methods": results,
        "plan": plan_times(case),
    }


def plan_times(case: Case) -> dict[str, Any]:
    """Host seconds of a plan from nothing and of the plans of the steps after it."""
    plans, steps = planner(case), [case.step(i) for i in range(PAGE - 1)]
    plans.update(*steps[0])  # buffers grow
    # Other branches in every row than the time before.
    rolled = [np.roll(steps[0][0], row, axis=0) for row in range(1, 6)]
    full = host_seconds(lambda i: plans.update(rolled[i % len(rolled)], steps[0][1]), 20)
    incremental = host_seconds(lambda i: plans.update(*steps[i % len(steps)]), 60)
    return {"full": full, "incremental": incremental, "advanced": plans.advanced}


def graph_step(tree: Tree, heads: Heads) -> dict[str, Any]:
    """Plan and replay of a captured step while the tails grow; nothing may make the host wait."""
    case = make_case(tree, heads, "cuda")
    capacity = planner(case).update(*case.step(0)).capacity
    fixed = planner(case, capacity=WorkCapacity(*(2 * bound for bound in capacity)))
    plan = fixed.update(*case.step(0))
    replay = graphed(lambda: tree_attention(case.q, case.k_pages, case.v_pages, plan)[0])
    steps = [case.step(i) for i in range(PAGE - 1)]

    def step(number: int) -> None:
        with no_host_sync():
            fixed.update(*steps[number % len(steps)])
            replay()

    seconds = host_seconds(step, 60)
    same = torch.equal(replay(), tree_attention(case.q, case.k_pages, case.v_pages, plan)[0])
    return {"tree": str(tree), "heads": str(heads), "host": seconds, "equals_eager": same}


def kv_ops(
    backend: str, branches: int = 256, layers: int = 32, kv_heads: int = 8, head_dim: int = 128
) -> dict[str, Any]:
    """A step's append to one layer, and the copies of its tails in all layers; bytes read and written."""
    randn = partial(torch.randn, dtype=torch.bfloat16, device="cuda")
    pools = randn((2, layers, 2 * branches, kv_heads, PAGE, head_dim))
    k, v = randn((2, branches, kv_heads, head_dim))
    shuffled = torch.randperm(2 * branches, device="cuda", dtype=torch.int32)
    slots, copies = shuffled[:branches] * PAGE + 3, shuffled.view(branches, 2)

    def append() -> None:
        with forced(backend):
            append_kv(k, v, *pools[:, 0], slots)

    def copy() -> None:
        with forced(backend):
            copy_pages(*pools, copies)

    append()
    right = torch.equal(pools[0, 0].transpose(1, 2).flatten(0, 1)[slots], k)
    copy()
    right &= torch.equal(pools[:, :, copies[:, 0]], pools[:, :, copies[:, 1]])
    moved = {"append_kv": 4 * k.nbytes, "copy_pages": pools.nbytes}  # half the pages go to the other half
    times = measure({"append_kv": append, "copy_pages": copy})
    return {
        "backend": backend,
        "right": right,
        "ops": {name: {"bytes": moved[name], **times[name]._asdict()} for name in moved},
    }


def main(
    output: Annotated[Path, typer.Option("--json", help="JSON lines are appended.")] = Path("bench.jsonl"),
    tree: Annotated[list[str] | None, typer.Option(help="Only trees whose name contains this.")] = None,
    heads: Annotated[list[str] | None, typer.Option(help="Only these heads, as 32/8/128.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds after which no entry is begun.")] = 1e9,
) -> None:
    """Measures, the most telling entries first, until the budget is spent."""
    console = Console()
    deadline = time.monotonic() + budget
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to torch")

    def record(kind: str, run: Callable[[], dict[str, Any]]) -> None:
        if time.monotonic() > deadline:
            return
        begin = time.monotonic()
        try:
            result = run()
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {error}"}
        with output.open("a") as file:
            file.write(json.dumps({"kind": kind, **result}) + "\n")
        gc.collect()
        torch.cuda.empty_cache()
        labels = " ".join(str(result[key]) for key in ("tree", "heads", "backend", "failed") if key in result)
        console.print(f"{kind} {labels} [dim]{time.monotonic() - begin:.1f} s")

    record("ceilings", lambda: ceilings()._asdict())
    record("graph_step", lambda: graph_step(TREES[4], HEADS[0]))
    for branches in (16, 1):
        record("sparse", partial(sparse_step, branches, HEADS[0]))
    for backend in BACKENDS:
        record("kv_ops", partial(kv_ops, backend))
    entries = [(t, h) for h in HEADS for t in TREES]
    entries = [(t, h) for t, h in entries if (not heads or str(h) in heads)]
    entries = [(t, h) for t, h in entries if not tree or any(part in str(t) for part in tree)]
    for done, (t, h) in enumerate(entries):
        left_out = {}
        if (deadline - time.monotonic()) < FLEX_SECONDS * (len(entries) - done):
            left_out["flex_attention"] = "no time for its compilation"
        record("attention", partial(attention, t, h, left_out))


if __name__ == "__main__":
    typer.run(main)
