"""The loss of sparse attention and int8 pages on a real model: python -m benches.sparse_quality

The text is the language reference that every Python carries (pydoc_data.topics), cut at several lengths. The
last `window` tokens of each follow a prefix that was computed densely; each token has its own choice of pages
(`SparseConfig(prompts=True)`), all in one forward. A row chooses among the full pages before its `recent`
last ones, as if tokens were fed one by one. Only the token's own page, which is read anyway, is summarised
with later tokens, and weighs the heads of a group slightly differently.

Another window repeats an earlier passage, which the model copies as far as it finds it: the hardest case.

Recall is the share of attention mass that the chosen pages hold in the dense forward, mean over layers, KV
heads and rows; "oracle" chooses by the exact masses, under the same rule and budget, and "window" takes the
sink and the latest pages. Agreement, KL divergence and perplexity compare next tokens with the dense forward.
"""

from __future__ import annotations

import json
import platform
import pydoc_data.topics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import transformers
import typer
from torch import Tensor
from tts_decode.core.lineage import Lineage
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.hf import HFEngine
from tts_decode.model.loading import load_model
from tts_decode.model.sparse import SparseConfig, SparseStep

from benches.sparse_probes import (
    PAGE,
    Baseline,
    Captured,
    Int8Probe,
    PagedModel,
    RecallProbe,
    ShareProbe,
    Step,
    Watch,
)
from benches.sparse_quality_report import plots, tables

REPEATED = 1500  # tokens from a passage to its repetition; no multiple of a page
FAN_OUT, TAIL = 4, 32  # of the tree that shows sharing: two levels of forks, tokens of each branch
SHARE_PAGES = 2 + (FAN_OUT + FAN_OUT**2) * (TAIL // PAGE + 1)
SUMMARIES = ("mean", "minmax", "quarters")
BUDGETS = {"1/4": 1 / 4, "1/8": 1 / 8, "1/16": 1 / 16}

Record = dict[str, Any]


def next_tokens(dense: Tensor, other: Tensor, targets: Tensor) -> Record:
    """How another forward's logits [T, vocab] differ from the dense ones, for the true next tokens [T]."""
    a, b = dense.log_softmax(-1), other.log_softmax(-1)
    rows = torch.arange(len(targets))
    return {
        "agreement": (a.argmax(-1) == b.argmax(-1)).float().mean().item(),
        "kl": (a.exp() * (a - b)).sum(-1).mean().item(),
        "dense_nll": -a[rows, targets].mean().item(),
        "nll": -b[rows, targets].mean().item(),
    }


class Means:
    """Records over several texts, averaged by their keys."""

    def __init__(self) -> None:
        self._records: dict[tuple[tuple[str, Any], ...], list[Record]] = defaultdict(list)

    def add(self, key: Record, values: Record) -> None:
        self._records[tuple(key.items())].append(values)

    def rows(self) -> list[Record]:
        rows = []
        for key, found in self._records.items():
            row = {name: float(np.mean([values[name] for values in found])) for name in found[0]}
            for name in [name for name in row if name.endswith("nll")]:
                row[name.replace("nll", "perplexity")] = float(np.exp(row.pop(name)))
            rows.append(dict(key) | {name: round(value, 5) for name, value in row.items()})
        return rows


class Study(NamedTuple):
    """Sizes in tokens. base: the rule; budgets and summaries take their turns."""

    lengths: list[int]
    window: int
    share_length: int
    base: SparseConfig
    progress: Callable[[str], None]

    def configs(self, **changes: Any) -> dict[str, SparseConfig]:
        return {name: replace(self.base, budget=share, **changes) for name, share in BUDGETS.items()}


class Window(NamedTuple):
    """The last `size` of the first `length` tokens of a text whose prefix is in the model's pages."""

    model: PagedModel
    root: int
    text: list[int]
    length: int
    size: int

    @property
    def targets(self) -> Tensor:
        return torch.tensor(self.text[self.length - self.size + 1 : self.length + 1])

    def repeating(self, distance: int) -> Window:
        """A window with the tokens of `distance` before over again."""
        start = self.length - self.size
        earlier = max(0, start - distance)
        return self._replace(text=self.text[:start] + self.text[earlier : earlier + self.size + 1])

    def feed(self, watch: Watch | None = None) -> Tensor:
        """Logits after each of the tokens."""
        tree, start = self.model.tree, self.length - self.size
        branch = tree.fork(self.root, 1, at=start)[0]
        logits = self.model.feed([branch], [self.text[start : self.length]], watch, every=True)
        tree.release(branch)
        return logits


def measure_text(engine: HFEngine, text: list[int], study: Study) -> dict[str, Means]:
    """text: one token more than the longest length, the last one as a target only."""
    found = {name: Means() for name in ("recall", "quality", "share", "int8")}
    prefix = text[: max(study.lengths) - study.window]
    pages = -(-len(text) // PAGE) + study.window // PAGE + SHARE_PAGES
    study.progress("prefill")
    first = PagedModel(engine, pages, summaries=SUMMARIES[0])
    first_root = first.prefill(prefix)
    for summaries in SUMMARIES:
        model, root = first, first_root
        if summaries != SUMMARIES[0]:
            model = PagedModel(engine, pages, summaries=summaries)
            root = model.adopt(first, first_root)
        for length in study.lengths:
            study.progress(f"{summaries}, {length} tokens")
            measure_window(Window(model, root, text, length, study.window), summaries, study, found)
        study.progress(f"{summaries}, sharing")
        measure_sharing(model, root, text[: study.share_length], summaries, study, found["share"])
    rounded = PagedModel(engine, pages, dtype=torch.int8)
    rounded_root = rounded.adopt(first, first_root)
    for length in study.lengths:
        study.progress(f"int8, {length} tokens")
        probes: list[Int8Probe] = []
        exact = Window(first, first_root, text, length, study.window)
        dense = exact.feed(lambda s, p=probes: p.append(Int8Probe(s)) or p[-1])
        other = exact._replace(model=rounded, root=rounded_root).feed()
        losses = next_tokens(dense, other, exact.targets)
        found["int8"].add({"length": length}, {"attention_error": probes[0].relative_rms} | losses)
    return found


def measure_window(window: Window, summaries: str, study: Study, found: dict[str, Means]) -> None:
    captured = Captured()
    configs = study.configs(summaries=summaries)
    dense = window.feed(lambda step: RecallProbe(step, configs, captured))
    for (judge, budget, layers), recall in captured.means().items():
        if judge == summaries or summaries == SUMMARIES[0]:  # the others are the same for all summaries
            key = {"length": window.length, "judge": judge, "budget": budget, "layers": layers}
            found["recall"].add(key, {"recall": recall})
    measure_losses(window, "new", dense, configs, found["quality"])
    again = window.repeating(REPEATED)
    measure_losses(again, "repeated", again.feed(), configs, found["quality"])


def measure_losses(
    window: Window, passage: str, dense: Tensor, configs: dict[str, SparseConfig], found: Means
) -> None:
    for budget, config in configs.items():
        summaries = config.summaries
        key = {"length": window.length, "passage": passage, "budget": budget}
        for dense_layers in {config.dense_layers, 0} if budget == "1/8" else {config.dense_layers}:
            c = replace(config, dense_layers=dense_layers)
            logits = window.feed(lambda s, c=c: SparseStep(s.plan, s.reads(c)))
            losses = next_tokens(dense, logits, window.targets)
            found.add(key | {"judge": summaries, "dense_layers": dense_layers}, losses)
        for judge in ("oracle", "window") if summaries == SUMMARIES[0] else ():
            logits = window.feed(lambda s, c=config, j=judge: Baseline(s, c, j))
            losses = next_tokens(dense, logits, window.targets)
            found.add(key | {"judge": judge, "dense_layers": config.dense_layers}, losses)


def measure_sharing(
    model: PagedModel, root: int, text: list[int], summaries: str, study: Study, found: Means
) -> None:
    """A tree that samples: FAN_OUT branches of TAIL tokens behind the text, and as many behind each."""
    generator = torch.Generator().manual_seed(0)
    trunk = model.tree.fork(root, 1, at=len(text) - PAGE)[0]
    logits = model.feed([trunk], [text[-PAGE:]])
    branches, lineages = [trunk], [Lineage.of_root()]
    captured, pages = Captured(), Captured()
    configs = study.configs(summaries=summaries)
    shared = len(text) // PAGE

    def watch(step: Step) -> ShareProbe:
        return ShareProbe(step, configs, shared, captured, pages)

    for level in range(2):
        parents = branches
        branches = [child for branch in parents for child in model.tree.fork(branch, FAN_OUT)]
        forked_at = len(text) + level * TAIL
        lineages = [child for line in lineages for child in [line.forked(forked_at)] * FAN_OUT]
        for parent in parents:
            model.tree.release(parent)
        logits = logits.repeat_interleave(FAN_OUT, 0)
        for i in range(TAIL):
            tokens = torch.multinomial((logits / 0.8).softmax(-1), 1, generator=generator)
            # Successive steps are much alike: every fourth of the leaves' is measured.
            measured = level == 1 and i % 4 == 3
            logits = model.feed(branches, tokens.tolist(), watch if measured else None, lineages=lineages)
    for branch in branches:
        model.tree.release(branch)
    means = pages.means()
    for (budget, share), recall in captured.means().items():
        found.add(
            {"length": len(text), "summaries": summaries, "budget": budget, "share": share},
            {
                "recall": recall,
                "pages_of_one": means[budget, share, "one"],
                "pages_of_all": means[budget, share, "all"],
            },
        )


def load_text(tokenizer: Any, length: int) -> list[int]:
    """The first tokens of the topics in alphabetical order, paragraphs that come again left out."""
    topics = pydoc_data.topics.topics
    paragraphs = (part for name in sorted(topics) for part in topics[name].split("\n\n"))
    text = "\n\n".join({part.strip(): part for part in paragraphs}.values())
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if length > len(ids):
        raise ValueError(f"lengths: got {length} tokens, the text has {len(ids)}")
    return ids[:length]


def main(
    model: str = DEFAULT_MODEL,
    lengths: Annotated[str, typer.Option(help="tokens, with commas; multiples of 16")] = "2048,4096,8192",
    window: Annotated[int, typer.Option(help="last tokens that are measured; a multiple of 16")] = 256,
    share_length: Annotated[int, typer.Option(help="tokens before branches fork")] = 4096,
    json_file: Annotated[Path | None, typer.Option("--json", help="where results go")] = None,
    plot: Annotated[Path | None, typer.Option(help="folder for plots")] = None,
    from_json: Annotated[Path | None, typer.Option(help="measure nothing, report these results")] = None,
) -> None:
    begin = time.perf_counter()
    if from_json is not None:
        results = json.loads(from_json.read_text())
    else:
        torch.manual_seed(0)
        loaded, tokenizer = load_model(model)
        engine = HFEngine(loaded)
        study = Study(
            [int(length) for length in lengths.split(",")],
            window,
            share_length,
            SparseConfig(min_pages=1, prompts=True),
            lambda stage: print(f"{time.perf_counter() - begin:5.0f} s  {stage}", file=sys.stderr),
        )
        if any(n % PAGE for n in (*study.lengths, window, share_length)) or window >= min(study.lengths):
            raise typer.BadParameter(f"expected multiples of {PAGE}, and a window below every length")
        if share_length > max(study.lengths) - window:
            raise typer.BadParameter("--share-length: expected at most the longest length less the window")
        text, base = load_text(tokenizer, max(study.lengths) + 1), study.base
        results = {
            "model": model,
            "dtype": str(engine.dtype),
            "text": f"pydoc_data.topics of Python {platform.python_version()}",
            "window": window,
            "rule": {"sink": base.sink, "recent": base.recent, "dense_layers": base.dense_layers},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            **{name: means.rows() for name, means in measure_text(engine, text, study).items()},
        }
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(results))
    if plot is not None:
        plots(results, plot)


if __name__ == "__main__":
    typer.run(main)
