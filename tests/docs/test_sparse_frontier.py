"""benches.sparse_frontier: its estimates are what the kernels keep, its figures those of a plain sum."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import VOCAB, tiny_model
from tts_decode.model.hf import HFEngine
from tts_decode.model.sparse import SparseConfig

from benches.page_estimates import ESTIMATES, clusters
from benches.sparse_frontier import EVERY, EstimateProbe, EstimateStep, page_scores, table
from benches.sparse_probes import PagedModel, Step
from benches.sparse_quality import REPEATED, Window
from tts_kernels import KVPool, plan, score_pages

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mean", "mean"), ("minmax", "minmax"), ("quarters", "quarters")],
)
def test_estimates_of_summaries_that_there_are(name: str, kind: str) -> None:
    pool = KVPool(num_layers=1, num_kv_heads=2, head_dim=32, num_pages=9, summaries=kind)
    keys = torch.randn((144, 2, 32))
    pool.append(0, keys, keys, torch.arange(144, dtype=torch.int32))
    q = torch.randn((20, 6, 32))
    made = plan(torch.arange(9, dtype=torch.int32)[None], torch.tensor([144]).int(), torch.tensor([20]).int())
    expected = score_pages(q, pool.layer_summaries(0), made)
    found = page_scores(keys, q * 32**-0.5, torch.arange(124, 144), ESTIMATES[name])
    rows = torch.arange(20) < 4  # whose last page is as full as the summary of the whole one
    whole = found[:, :, :7], expected[:, :, :7]
    torch.testing.assert_close(whole[0][:, rows], whole[1][:, rows], rtol=1e-4, atol=1e-6)


def test_two_clusters_of_two_points_are_exact() -> None:
    points = torch.randn((5, 2, 3, 8))
    which = (torch.arange(16) % 3 == 0).long()
    keys = points[:, which]  # [5, 16, 3, 8]
    q = torch.randn((4, 3, 2, 8))
    logits = torch.einsum("pnhd,thgd->htgpn", keys, q)
    expected = logits.logsumexp(-1) - math.log(16)
    torch.testing.assert_close(clusters(2)(keys, q), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ESTIMATES["exact"].logits(keys, q), expected, rtol=1e-4, atol=1e-4)


def test_recall_and_what_is_copied() -> None:
    """The exact estimate with a budget of all pages holds everything; half of them hold what a sort finds."""
    torch.manual_seed(0)
    length, size = REPEATED + 64, 32
    length -= length % 16
    text = torch.randint(VOCAB, (length + 1,)).tolist()
    model = PagedModel(HFEngine(tiny_model()), length // 16 + 8)
    window = Window(model, model.prefill(text[: length - size]), text, length, size)
    config = SparseConfig(budget=40, min_pages=1, recent=2, prompts=True, dense_layers=0)
    probes: list[EstimateProbe] = []
    masses: list[torch.Tensor] = []

    class Recorder:
        def __init__(self, step: Step) -> None:
            self._step = step
            probes.append(EstimateProbe(step, {"40": config}, [ESTIMATES["exact"]]))

        def select(self, layer: int, pool: KVPool, q: torch.Tensor, scale: float | None) -> None:
            masses.append(pool.attend_with_mass(layer, q, self._step.plan, scale=scale)[2][:, ::EVERY])
            probes[0].select(layer, pool, q, scale)

    dense = window.feed(Recorder)
    held = 0.0
    for mass in masses:
        for row, position in enumerate(range(length - size, length, EVERY)):
            last = position // 16
            for head in mass[:, row]:
                kept = {0, last, last - 1}
                others = sorted(set(range(last + 1)) - kept, key=lambda page: -head[page].item())
                held += head[[*kept, *others[: 40 - len(kept)]]].sum().item()
    total = sum(mass.sum().item() for mass in masses)
    assert probes[0].total[0].item() == pytest.approx(total, rel=1e-4)
    assert probes[0].held["exact", "40"][0].item() == pytest.approx(held, rel=1e-3)
    assert probes[0].held["exact", "40"][0] < probes[0].total[0]
    everything = SparseConfig(budget=length // 16 - 1, min_pages=1, prompts=True, dense_layers=0)
    sparse = window.feed(lambda step: EstimateStep(step, everything, ESTIMATES["exact"]))
    assert (sparse - dense).abs().max() < 0.1


def test_the_gap_that_is_closed() -> None:
    records = []
    for name, agreement in (("exact", 0.9), ("mean", 0.7), ("minmax", 0.6)):
        key = {"estimate": name, "budget": "1/8", "length": 2048}
        records.append(key | {"recall": 0.5, "copied": 0.5})
        records.append(key | {"agreement": agreement, "kl": 0.25})
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table(records).splitlines()]
    assert rows[2][:3] == ["exact", "1/2", "1/8"]
    assert rows[3][:3] == ["mean", "1/32", "1/8"]
    assert [row[-1] for row in rows[2:]] == ["100%", "0%", "-50%"]
    assert rows[4] == ["minmax", "1/16", "1/8", "50.0%", "50.0%", "60.0%, 0.250", "-50%"]
