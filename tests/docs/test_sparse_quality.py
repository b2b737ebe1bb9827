"""benches.sparse_quality on a tiny model: its figures equal those of a plain computation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, tiny_model
from tts_decode.core.lineage import Lineage
from tts_decode.model.hf import HFEngine
from tts_decode.model.sparse import SparseConfig

from benches.sparse_probes import Captured, Int8Probe, PagedModel, RecallProbe, ShareProbe, Step
from benches.sparse_quality import Means, Window, next_tokens
from tts_kernels import KVPool

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH, SIZE = 208, 32
CONFIG = SparseConfig(budget=0.5, min_pages=1, recent=2, prompts=True, dense_layers=1)


@pytest.fixture(scope="module")
def window() -> Window:
    torch.manual_seed(0)
    text = torch.randint(VOCAB, (LENGTH + 1,)).tolist()
    model = PagedModel(HFEngine(tiny_model()), 64, summaries="mean")
    return Window(model, model.prefill(text[: LENGTH - SIZE]), text, LENGTH, SIZE)


class Recorder:
    """Calls another probe and keeps the queries and keys of each layer."""

    def __init__(self, inner: Any, step: Step, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._inner, self._table, self._layers = inner, torch.from_numpy(step.tables[0]), layers

    def select(self, layer: int, pool: KVPool, q: torch.Tensor, scale: float | None) -> None:
        self._layers.append((q.double(), pool.gather(layer, self._table, LENGTH)[0].double()))
        return self._inner.select(layer, pool, q, scale)


def plain_recall(q: torch.Tensor, k: torch.Tensor, judge: str) -> float:
    """q: [SIZE, 4, 32], k: [LENGTH, 2, 32]. Row by row, head by head."""
    held = []
    for row, position in enumerate(range(LENGTH - SIZE, LENGTH)):
        columns = position // 16 + 1
        budget = math.ceil(CONFIG.budget * columns)
        for head in range(2):
            mass, score = torch.zeros(columns), torch.zeros(columns)
            for query in q[row, 2 * head : 2 * head + 2]:
                logits = k[: position + 1, head] @ query * 32**-0.5
                parts = [part.sum() for part in logits.softmax(0).split(16)]
                mass += torch.stack(parts).float() / 2
                seen = torch.tensor([len(part) for part in logits.split(16)])
                means = k[:, head].view(-1, 16, 32).mean(1)[:columns]  # of whole pages, later tokens too
                score += (means @ query * 32**-0.5 + seen.log()).softmax(0).float() / 2
            judged = {"mean": score, "oracle": mass, "window": torch.arange(columns)}[judge]
            kept = {0, columns - 2, columns - 1}
            others = sorted(set(range(columns)) - kept, key=lambda c: (-judged[c].item(), c))
            chosen = [*kept, *others[: budget - len(kept)]]
            held.append(mass[chosen].sum().item())
    return sum(held) / len(held)


def test_recall(window: Window) -> None:
    captured = Captured()
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []
    window.feed(lambda step: Recorder(RecallProbe(step, {"1/2": CONFIG}, captured), step, layers))
    found = captured.means()
    for judge in ("mean", "oracle", "window"):
        expected = [plain_recall(q, k, judge) for q, k in layers]
        assert found[judge, "1/2", "first"] == pytest.approx(expected[0], abs=1e-5)
        assert found[judge, "1/2", "sparse"] == pytest.approx(sum(expected[1:]) / 2, abs=1e-5)


def test_adopted_pages_are_those_of_a_prefill(window: Window) -> None:
    engine, prefix = window.model.engine, window.text[: LENGTH - SIZE]
    fresh, adopted = (PagedModel(engine, 64, summaries="minmax") for _ in range(2))
    roots = fresh.prefill(prefix), adopted.adopt(window.model, window.root)
    tables = [
        torch.from_numpy(model.tree.block_tables([root])[0][0]).long()
        for model, root in zip((fresh, adopted), roots, strict=True)
    ]
    for layer in range(3):
        assert torch.equal(
            fresh.pool.layer_summaries(layer)[tables[0]], adopted.pool.layer_summaries(layer)[tables[1]]
        )
    logits = [
        window._replace(model=model, root=root).feed()
        for model, root in zip((fresh, adopted), roots, strict=True)
    ]
    assert torch.equal(*logits)


def test_branches_that_choose_together(window: Window) -> None:
    """Four branches on 13 pages: of a budget of 6 the sink and 2 recent pages are kept, of them 1 a tail."""
    model, captured, pages = window.model, Captured(), Captured()
    config = replace(CONFIG, budget=6, dense_layers=0)
    trunk = model.tree.fork(window.root, 1, at=LENGTH - SIZE)[0]
    model.feed([trunk], [window.text[LENGTH - SIZE : LENGTH]])
    branches = model.tree.fork(trunk, 4)
    model.feed(
        branches,
        [[t] for t in (3, 5, 7, 11)],
        lambda s: ShareProbe(s, {"6": config}, 13, captured, pages),
        lineages=[Lineage.of_root().forked(LENGTH)] * 4,
    )
    for branch in (trunk, *branches):
        model.tree.release(branch)
    recall, read = captured.means(), pages.means()
    assert recall["6", "tree"] <= recall["6", "branch"] + 1e-6
    for share in ("branch", "siblings", "tree"):
        assert read["6", share, "one"] == 5  # of the 13 shared ones, beside the tail
    assert read["6", "tree", "all"] == read["6", "siblings", "all"] == 5
    assert read["6", "branch", "all"] > 5


def test_int8_error(window: Window) -> None:
    """Against attention in float64 over the rounded keys and values, gathered."""
    probes: list[Int8Probe] = []
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watch(step: Step) -> Recorder:
        probes.append(Int8Probe(step))
        return Recorder(probes[0], step, layers)

    window.feed(watch)
    assert 1e-4 < probes[0].relative_rms < 0.05
    rounded = PagedModel(window.model.engine, 64, dtype=torch.int8)
    root = rounded.adopt(window.model, window.root)
    table = torch.from_numpy(rounded.tree.block_tables([root])[0][0])
    k8 = rounded.pool.gather(0, table, LENGTH - SIZE)[0].double()
    k = layers[0][1][: LENGTH - SIZE]
    step = k.view(-1, 16, 2, 32).abs().amax((1, 3)) / 127  # of each page and head
    assert ((k8 - k).view(-1, 16, 2, 32).abs() <= 0.5001 * step[:, None, :, None]).all()


def test_next_tokens() -> None:
    dense = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 0.0]])
    found = next_tokens(dense, other, torch.tensor([1, 0]))
    p, r = dense.softmax(-1).tolist(), other.softmax(-1).tolist()
    assert found["agreement"] == 0.5
    assert found["nll"] == pytest.approx(-(math.log(r[0][1]) + math.log(r[1][0])) / 2)
    assert found["dense_nll"] == pytest.approx(-(math.log(p[0][1]) + math.log(p[1][0])) / 2)
    kl = [sum(a * math.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, r, strict=True)]
    assert found["kl"] == pytest.approx(sum(kl) / 2, abs=1e-6)
    means = Means()
    means.add({"length": 3}, {"nll": 1.0})
    means.add({"length": 3}, {"nll": 2.0})
    assert means.rows() == [{"length": 3, "perplexity": pytest.approx(math.exp(1.5), abs=1e-4)}]
