"""`benches.cluster_plan`: terms of a step and room for KV by hand, what a plan makes of it, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tts_decode.cost import Machine, ModelShape, StepCounts, step_cost

from benches.cluster_plan import page, plan
from benches.cluster_plan.dispatch import dispatched
from benches.cluster_plan.law import Cluster, Group
from benches.cluster_plan.trees import Tree, read

ROOT = Path(__file__).parents[2]

# 2 layers of 2 query and 2 KV heads of 4, hidden 8, MLP 16, vocabulary 32, in bytes of 2.
# A layer: 8 x 4 x (2 + 2 x 2 + 2) = 256 of attention and 3 x 8 x 16 = 384; two of them 1,280; LM head 256.
SHAPE = ModelShape.gated(
    num_layers=2, num_q_heads=2, num_kv_heads=2, head_dim=4, hidden=8, intermediate=16, vocab=32
)
SMALL = Cluster(Machine(1000, 100), memory=4000, usable=0.9, link=64, latency=0.5, host=10, node=2)
COUNTS = StepCounts(tokens=4, logits=4, pairs=40, columns=8, pages=3, page_size=16)


def test_the_terms_of_a_step_are_those_worked_out_by_hand() -> None:
    terms = Group(SMALL, SHAPE, 2).terms(step_cost(SHAPE, COUNTS), 4)
    # Products: 2 x (1,280 + 256) x 4 = 12,288; attention: 2 layers x 40 pairs x 4 x 2 heads x 4 = 2,560.
    assert terms.flops == pytest.approx((12288 + 2560) / 2000)
    assert terms.weights == pytest.approx(2 * 1536 / 200)
    # A page: K and V of 2 heads x 4 x 16 tokens x 2 layers in 2 bytes = 1,024.
    assert terms.kv == pytest.approx(3 * 1024 / 200)
    # 2 of each of 2 layers, of 4 x 8 x 2 = 64 bytes; of 2 GPUs each sends 2 x 1/2 of them: 1 s and 0.5 s.
    assert terms.all_reduce == pytest.approx(4 * (0.5 + 1))
    assert terms.streamed == 0
    assert terms.total == pytest.approx(7.424 + 15.36 + 15.36 + 6)


def test_a_ring_of_four_sends_one_and_a_half_messages() -> None:
    shape = replace(SHAPE, num_q_heads=4, num_kv_heads=4)
    cluster = replace(SMALL, node=4)
    assert Group(cluster, shape, 4).all_reduce(4) == pytest.approx(4 * (0.5 + 1.5))
    assert Group(cluster, shape, 1).all_reduce(4) == 0


def test_room_for_kv_is_what_all_weights_leave() -> None:
    # Usable 2 x 3,600; weights and the embedding table (1,536 + 256) x 2 = 3,584.
    group = Group(SMALL, SHAPE, 2)
    assert group.kv_room == pytest.approx(7200 - 3584)
    assert replace(group, streamed=1000).kv_room == pytest.approx(7200 - 2584)


def test_streamed_weights_come_over_the_hosts_link_and_not_from_memory() -> None:
    group = Group(SMALL, SHAPE, 2, streamed=1000)
    terms = group.terms(step_cost(SHAPE, COUNTS), 4)
    assert terms.weights == pytest.approx((3072 - 1000) / 200)
    assert terms.streamed == pytest.approx(1000 / 20)


@pytest.mark.parametrize("gpus", [3, 4])
def test_a_group_divides_the_heads_and_stays_in_its_node(gpus: int) -> None:
    with pytest.raises(ValueError, match=f"gpus: got {gpus}"):
        Group(SMALL, SHAPE, gpus)


def test_llama_70b_has_the_sizes_that_it_is_known_for() -> None:
    """70.6e9 parameters with both tables; 320 KiB of KV a token."""
    shape = plan.SHAPES["bfloat16"]
    assert Group(SMALL, shape, 1).stored_bytes / 2 == pytest.approx(70.6e9, rel=1e-3)
    assert plan.kv_page(shape) == 16 * 320 * 1024


def test_problems_an_hour_of_searches_that_are_all_alike() -> None:
    """A search of 8 tokens (one chunk) a row, one row on one page: what is served is the sum of its terms."""
    group = Group(replace(SMALL, memory=1e6), SHAPE, 2)
    tree = Tree([[1, 1, 10]], prompt=2, sampled=8, nodes=1, mean_pages=1.0)
    rate, terms, rows, running = plan.per_hour(group, [tree])
    # Room for KV: 1,800,000 - 3,584 in bytes, by 1,024: 1,754 pages, all of them searches of one page.
    assert (rows, running) == pytest.approx((1754, 1754))
    flops = 1754 * (2 * 1536 + 10 * 2 * 4 * 2 * 4) / 2000
    step = flops + 2 * 1536 / 200 + 1754 * 1024 / 200 + 4 * (0.5 + 1754 * 16 / 64)
    assert terms.total == pytest.approx(step)
    # The prompt: 2 tokens through the layers, logits of one, 3 pairs; its all-reduces.
    prompt = (2 * 1280 * 2 + 2 * 256 + 3 * 64) / 2000 + 4 * (0.5 + 2 * 16 / 64)
    assert rate == pytest.approx(3600 / (8 * step / 1754 + prompt))


def test_a_cluster_takes_the_group_that_gives_most_for_a_gpu() -> None:
    def row(gpus: int, rate: float) -> plan.Record:
        return {
            "weights": "bfloat16",
            "gpus": gpus,
            "streamed": 0,
            "running": 3.0,
            "per_hour": rate,
            "per_hour_with_host": rate / 2,
            "step": 4.0,
            "terms": {"flops": 3.0, "kv": 1.0},
        }

    served = [row(2, 50), row(4, 120), row(8, 200)]
    found = plan.cluster_row(64, "bfloat16", served)
    assert (found["group"], found["groups"], found["running"]) == (4, 16, 48)
    assert (found["per_hour"], found["per_hour_with_host"]) == (1920, 960)
    assert found["search_seconds"] == 90  # 48 at a time, 1,920 an hour
    assert found["study_hours"] == pytest.approx(10_000 / 1920 + 90 / 3600)
    assert (found["binds"], found["share"]) == ("flops", 0.75)


def test_the_hosts_part_grows_along_the_measured_line() -> None:
    host = plan.line_through([{"rows": 256, "host": 0.004}, {"rows": 1024, "host": 0.010}])
    assert host(512) == pytest.approx(0.006)
    assert host(2048) == pytest.approx(0.018)


def test_what_is_dispatched_is_the_prompt_and_all_text() -> None:
    found = dispatched([{"prompt": 1000, "sampled": 90_000}, {"prompt": 2000, "sampled": 110_000}], 7200)
    assert found == (6000, 400_000, 2)
    assert found.bytes_per_second == 812_000


def test_the_committed_page_is_that_of_the_committed_record() -> None:
    text = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "benches/results/cluster_plan.json").read_text(encoding="utf-8"))
    assert page.filled(text, record) == text


def test_the_committed_plan_is_that_of_the_committed_trees() -> None:
    record = json.loads((ROOT / "benches/results/cluster_plan.json").read_text(encoding="utf-8"))
    found = plan.plan(read(record["trees"]), plan.line_through(record["host"]))
    assert json.loads(json.dumps(found)) == record["plan"]
