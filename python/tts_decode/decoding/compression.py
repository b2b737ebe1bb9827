"""Compresses the KV of a branch: each layer keeps the tokens that draw the most attention in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..model.host_steps import HostSteps, StepInputs
from ..model.importance import TokenImportance
from ..select import kept_tokens
from .compression_rule import Compression
from .cost_meter import CostMeter
from .live_path import LivePath
from .runtime import Runtime


def refuse_compression(runtime: Runtime) -> None:
    """Raises if attention over moved tokens would differ from attention over the tokens in place.

    Raises:
        UnsupportedModelError: a layer depends on where a key lies on the path.
        ValueError: the decoder keeps summaries of pages, or runs on a GPU.
    """
    runtime.refuse_under_mesh("compress")
    model = type(runtime.engine.model).__name__
    for call in runtime.engine.calls:
        if call.window is not None or call.chunk is not None or call.alibi:
            kind = "a sliding window" if call.window is not None else "chunks" if call.chunk else "ALiBi"
            raise UnsupportedModelError(
                f"compress: {model} has layers with {kind}, which go by where each key lies, and compressed "
                "tokens lie elsewhere: leave it out, or use evict"
            )
    if runtime.sparse is not None:
        raise ValueError(
            "compress: got a decoder with sparse attention, whose page summaries would tell of other tokens: "
            "make it without sparse="
        )
    if not isinstance(runtime.steps, HostSteps):
        raise ValueError(
            f"compress: got a model on {runtime.engine.device}, expected one on the CPU: steps on a GPU do "
            "not export queries"
        )


def compress_path(
    runtime: Runtime, meter: CostMeter, path: LivePath, keep: int, *, sink: int, recent: int, observe: int
) -> int:
    """Implements `Branch.compress`; returns the number of pages freed."""
    columns, count = _compressible(runtime, path, keep, sink, recent)
    if not count:
        return 0
    tree, pool = runtime.tree, runtime.pool
    if needed := runtime.kv.make_room(path.id, 0):
        raise runtime.kv.out_of_pages(path.id, needed)
    runtime.kv.reload(path.id)
    table = tree.block_tables([path.id])[0][0]
    pages = torch.from_numpy(table[columns])
    importance = _observed(runtime, meter, path, pages, observe)
    kept = kept_tokens(importance.numpy(), (len(columns) - count) * pool.page_size)
    stay = columns[count:]
    slots = (pages[count:, None] * pool.page_size + torch.arange(pool.page_size)).flatten().int()
    moved: list[tuple[Tensor, Tensor]] = []
    for layer, chosen in enumerate(torch.from_numpy(kept)):
        k, v = pool.gather(layer, pages, len(pages) * pool.page_size)
        moved.append((k[chosen], v[chosen]))
    for layer, (k, v) in enumerate(moved):
        pool.append(layer, k, v, slots)
    tree.compact(path.id, columns, len(stay))
    path.move_mass(columns, stay)
    return count


def compress_if_over(runtime: Runtime, meter: CostMeter, path: LivePath, config: Compression) -> None:
    """Compresses a branch after a forward if the decoder's settings require it."""
    page = runtime.tree.page_size
    if path.kv_length <= config.budget_tokens + config.slack_tokens or path.kv_length < len(path.tokens):
        return
    keep, slack = -(-config.budget_tokens // page), config.slack_tokens // page
    rule: dict[str, Any] = {"sink": config.sink, "recent": config.recent}
    if _compressible(runtime, path, keep, **rule)[1] <= slack:
        return
    room = _pages_to_observe(runtime, min(config.observe, path.kv_length))
    if not runtime.kv.make_room(path.id, room * page):
        compress_path(runtime, meter, path, keep, **rule, observe=config.observe)


def _compressible(
    runtime: Runtime, path: LivePath, keep: int, sink: int, recent: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Returns the columns whose tokens may move, ascending, and how many of the first to give up."""
    holders = runtime.tree.page_holders(path.id)
    own = np.flatnonzero(holders[: max(0, len(holders) - recent)] == 1)
    own = own[own >= sink]
    return own, max(0, min(int((holders > 0).sum()) - keep, len(own) - 1))


def _pages_to_observe(runtime: Runtime, observe: int) -> int:
    """Returns the pages that the last tokens take when they are fed on a branch of their own."""
    return -(-observe // runtime.tree.page_size) + 1


def _observed(runtime: Runtime, meter: CostMeter, path: LivePath, pages: Tensor, observe: int) -> Tensor:
    """Returns float32 [layers, tokens of the pages]: the attention that the last tokens pay to them.

    The tokens are fed once more, on a temporary branch.

    Raises:
        OutOfPagesError: there are no pages for the tokens.
    """
    tree, end = runtime.tree, path.kv_length
    lost = np.flatnonzero(tree.tokens(path.id)[:: tree.page_size] < 0)
    first = 1 if not len(lost) else (int(lost[-1]) + 1) * tree.page_size + 1  # no fork ends before it
    begin = max(first, end - observe)
    (aside,) = tree.fork(path.id, 1, at=begin)
    try:
        tokens = path.tokens[begin:end]
        if needed := runtime.kv.make_room(aside, len(tokens), keep=[path.id]):
            raise runtime.kv.out_of_pages(path.id, needed)
        new = tree.append([aside], [[max(token, 0) for token in tokens]])
        runtime.kv.note_peak()
        tables, lengths = tree.block_tables([aside])
        embeds = [path.embeds[at] for at in range(begin, end) if path.tokens[at] < 0]
        step = StepInputs(
            tokens,
            list(range(begin, end)),
            [],
            new.slots,
            new.copies,
            tables,
            lengths,
            np.array([len(tokens)], dtype=np.int32),
            embeds=torch.stack(embeds) if embeds else None,
        )
        return _run(runtime, meter, path, step, pages)
    finally:
        tree.release(aside)


def _run(runtime: Runtime, meter: CostMeter, path: LivePath, step: StepInputs, pages: Tensor) -> Tensor:
    watches: list[TokenImportance] = []
    soft_caps: Sequence[float | None] = [call.soft_cap for call in runtime.engine.calls]

    def watch(plan: Any) -> TokenImportance:
        watches.append(TokenImportance(plan, pages, soft_caps))
        return watches[-1]

    assert isinstance(runtime.steps, HostSteps)  # `refuse_compression` ensures this
    output = runtime.steps.run(step, hidden=False, watch=watch)
    meter.add([path.budget], step, output.pages)
    return torch.stack(watches[0].layers)
