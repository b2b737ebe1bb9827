"""Summaries of pages that might choose better than the present ones: python -m benches.sparse_frontier

The setting is that in `benches.sparse_quality`: the last tokens of several lengths, each with its own choice
of pages. They repeat an earlier passage, which the model copies as far as it finds it. Here the scores come
from the estimates of `benches.page_estimates`, computed from the keys themselves, so that a summary can be
judged before a kernel implements it. "exact" is the oracle.

Of each estimate: its memory beside keys and values in bfloat16; the mass that its pages hold in the dense
forward ("recall"), and of the mass that heads give to the page of the token to be copied, where it is more
than COPIED of a row's, how much lies in pages that were chosen ("copied"). Of those that are named, in
forwards of their own: agreement and KL divergence of next tokens, and the share that an estimate closes of
the gap in agreement between the mean and the oracle, over the lengths.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.hf import HFEngine
from tts_decode.model.loading import load_model
from tts_decode.model.sparse import SparseConfig

from benches.page_estimates import ESTIMATES, Estimate
from benches.sparse_probes import PAGE, Chooser, PagedModel, Step, exact_masses
from benches.sparse_quality import BUDGETS, REPEATED, Window, load_text, next_tokens
from tts_kernels import KVPool, Selection

BASELINE, ORACLE = "mean", "exact"
KV_BITS = 2 * PAGE * 16  # of a page's keys and values, for each channel
SHARES = {name: share for name, share in BUDGETS.items() if name != "1/4"}
EVERY = 4  # of so many rows one is judged for recall
COPIED = 0.3  # of a row's mass, mean over the query heads of a KV head

Record = dict[str, Any]


class Rows(NamedTuple):
    """The rows of a forward of one branch. length: tokens; positions: [T], those of the rows."""

    length: int
    table: Tensor
    positions: Tensor

    @classmethod
    def of(cls, step: Step) -> Rows:
        length = int(step.lengths[0])
        return cls(
            length, torch.from_numpy(step.tables[0]), torch.arange(length - int(step.counts[0]), length)
        )

    def scores(
        self, layer: int, pool: KVPool, q: Tensor, scale: float | None, estimate: Estimate, every: int = 1
    ) -> Tensor:
        """[H, T, P] by an estimate; 0 in rows that are left out."""
        keys = pool.gather(layer, self.table, self.length)[0].float()
        q = q[::every].float() * (pool.head_dim**-0.5 if scale is None else scale)
        found = page_scores(keys, q, self.positions[::every], estimate)
        scores = found.new_zeros((len(found), len(self.positions), found.shape[2]))
        scores[:, ::every] = found
        return scores


def page_scores(keys: Tensor, q: Tensor, positions: Tensor, estimate: Estimate) -> Tensor:
    """Scores [H, T, P] as `tts_kernels.score_pages` has them. keys: [P * 16, H, d], q: [T, Hq, d], scaled."""
    pages = keys.unflatten(0, (-1, PAGE))
    logits = estimate.logits(pages, q.unflatten(1, (keys.shape[1], -1)))
    visible = (positions[:, None] + 1 - torch.arange(len(pages)) * PAGE).clamp(0, PAGE)
    logits = logits + visible.log()[:, None]  # -inf where a row does not see the page
    return logits.softmax(-1).mean(2)


class EstimateProbe:
    """Reads everything, and compares the choices by each estimate with the exact masses.

    held: of (estimate, budget) two sums over layers, heads and rows: the mass in chosen pages, and what of it
    lies in pages of tokens to be copied. total: the same sums over all pages.
    """

    def __init__(self, step: Step, configs: dict[str, SparseConfig], estimates: list[Estimate]) -> None:
        self._step, self._rows, self._estimates = step, Rows.of(step), estimates
        self._choosers = {budget: Chooser(step, config) for budget, config in configs.items()}
        self.held: dict[tuple[str, str], Tensor] = defaultdict(lambda: torch.zeros(2))
        self.total = torch.zeros(2)

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> None:
        if layer < next(iter(self._choosers.values())).config.dense_layers:
            return
        mass = exact_masses(self._step, layer, pool, q, scale)[:, ::EVERY]
        source = (self._rows.positions[::EVERY] - REPEATED + 1) // PAGE  # where the next token stood before
        copied = torch.zeros_like(mass).scatter_(2, source.expand(len(mass), -1)[..., None], 1)
        copied = torch.where(mass > COPIED, mass * copied, 0)
        both = torch.stack([mass, copied])
        self.total += both.sum((1, 2, 3))
        for estimate in self._estimates:
            scores = self._rows.scores(layer, pool, q, scale, estimate, EVERY)
            for budget, chooser in self._choosers.items():
                chosen = chooser.choose(scores).to_bools(mass.shape[-1])[:, ::EVERY]
                self.held[estimate.name, budget] += (both * chosen).sum((1, 2, 3))


class EstimateStep:
    """In place of a SparseStep in a forward of one branch, chooses by an estimate."""

    def __init__(self, step: Step, config: SparseConfig, estimate: Estimate) -> None:
        self._chooser, self._rows, self._estimate = Chooser(step, config), Rows.of(step), estimate

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> Selection | None:
        if layer < self._chooser.config.dense_layers:
            return None
        return self._chooser.choose(self._rows.scores(layer, pool, q, scale, self._estimate))


def measure(
    engine: HFEngine, text: list[int], lengths: list[int], size: int, forwards: set[str]
) -> Iterator[Record]:
    """Records, those of recall first.

    text: at least one token more than the longest length. forwards: the estimates that get some of their own.
    """
    model = PagedModel(engine, -(-len(text) // PAGE) + 2 * size // PAGE)
    root = model.prefill(text[: max(lengths) - size])
    base = SparseConfig(min_pages=1, prompts=True)
    configs = {budget: replace(base, budget=share) for budget, share in SHARES.items()}
    estimates = list(ESTIMATES.values())
    windows = {}
    for length in lengths:
        window = Window(model, root, text, length, size).repeating(REPEATED)
        probes: list[EstimateProbe] = []
        dense = window.feed(lambda s, p=probes: p.append(EstimateProbe(s, configs, estimates)) or p[-1])
        windows[length] = window, dense
        for (name, budget), held in probes[0].held.items():
            recall, copied = (held / probes[0].total).tolist()
            key = {"estimate": name, "budget": budget, "length": length}
            yield key | {"recall": recall, "copied": copied}
    for estimate in estimates:
        for budget, config in configs.items() if estimate.name in forwards else ():
            for length, (window, dense) in windows.items():
                logits = window.feed(lambda s, c=config, e=estimate: EstimateStep(s, c, e))
                key = {"estimate": estimate.name, "budget": budget, "length": length}
                yield key | next_tokens(dense, logits, window.targets)


def table(records: list[Record]) -> str:
    """Markdown, a row for each estimate and budget. Recall and copied are means over the lengths."""
    cells: dict[tuple[str, str, int], Record] = defaultdict(dict)
    for r in records:
        cells[r["estimate"], r["budget"], r["length"]].update(r)
    lengths = sorted({length for _, _, length in cells})
    head = ["summary", "of K and V", "budget", "recall", "copied", *(f"{n:,}" for n in lengths), "gap closed"]
    rows = [head, ["---"] * len(head)]
    for name, budget in dict.fromkeys((name, budget) for name, budget, _ in cells):
        found = [cells[name, budget, n] for n in lengths]
        share = f"1/{KV_BITS / ESTIMATES[name].bits:.3g}"
        means = [f"{np.mean([r[figure] for r in found]):.1%}" for figure in ("recall", "copied")]
        losses = [""] * (len(lengths) + 1)
        if all("agreement" in r for r in found):
            losses = [f"{r['agreement']:.1%}, {r['kl']:.3f}" for r in found]
            least, most = (sum(cells[e, budget, n]["agreement"] for n in lengths) for e in (BASELINE, ORACLE))
            gap = most - least
            losses.append(f"{(sum(r['agreement'] for r in found) - least) / gap:.0%}" if gap > 0 else "")
        rows.append([name, share, budget, *means, *losses])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(
    model: str = DEFAULT_MODEL,
    lengths: Annotated[str, typer.Option(help="tokens, with commas; multiples of 16")] = "2048,4096,8192",
    window: Annotated[int, typer.Option(help="last tokens that are measured; a multiple of 16")] = 256,
    forwards: Annotated[
        str, typer.Option(help="estimates whose next tokens are compared, with semicolons; default: all")
    ] = ";".join(ESTIMATES),
    json_file: Annotated[Path | None, typer.Option("--json", help="where results go, as they come")] = None,
    from_json: Annotated[Path | None, typer.Option(help="measure nothing, report these results")] = None,
) -> None:
    if from_json is not None:
        print(table(json.loads(from_json.read_text())))
        return
    sizes = [int(length) for length in lengths.split(",")]
    if any(n % PAGE for n in (*sizes, window)) or window >= min(sizes) or min(sizes) - window < REPEATED:
        raise typer.BadParameter(
            f"expected multiples of {PAGE}, and each length at least {REPEATED} tokens more than the window"
        )
    names = set(forwards.split(";")) | {BASELINE, ORACLE}
    if unknown := names - set(ESTIMATES):
        raise typer.BadParameter(f"--forwards: got {sorted(unknown)}, expected some of {list(ESTIMATES)}")
    loaded, tokenizer = load_model(model)
    text = load_text(tokenizer, max(sizes) + 1)
    began, records = time.perf_counter(), []
    with torch.inference_mode():
        for record in measure(HFEngine(loaded), text, sizes, window, names):
            records.append(record)
            print(f"{time.perf_counter() - began:5.0f} s  {record}", file=sys.stderr)
            if json_file is not None:
                json_file.write_text(json.dumps(records, indent=1) + "\n")
    print(table(records))


if __name__ == "__main__":
    typer.run(main)
