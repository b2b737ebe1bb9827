"""`tts-decode bench`: equal work for what is compared, the floors, the shares, and what the user sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny_gguf
from tiny_models import byte_tokenizer
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.bench import machine
from tts_decode.bench.attention import AttentionTimes, make_case, replicated
from tts_decode.bench.decode import PARTS, measure_decode
from tts_decode.bench.machine import Peaks
from tts_decode.bench.plots import lines
from tts_decode.bench.search import measure_search
from tts_decode.bench.timing import Quartiles, interleaved, quartiles
from tts_decode.bench.trees import PAGE, Heads, Tree
from tts_decode.cli.app import run
from tts_decode.cost import Machine
from tts_decode.decoding import drawing
from tts_decode.model.shape import shape_of_config
from tts_decode.search import STRATEGIES
from tts_decode.tasks import default_tasks

from tts_kernels import plan, reference

SMALL = Tree((2, 4, 12), (32, 16, 48))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Peaks of small products, and a narrow terminal."""
    monkeypatch.setattr(machine, "PRODUCT_ROWS", 64)
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 16)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(["bench", *map(str, arguments)]) == 0
    return capsys.readouterr().out


# -- names of trees and heads


numbers = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(factors=numbers, pages=numbers)
def test_trees_are_read_as_they_are_written(factors: list[int], pages: list[int]) -> None:
    levels = min(len(factors), len(pages))
    nodes = np.cumprod(factors[:levels]).tolist()
    tree = Tree(tuple(nodes), tuple(PAGE * count for count in pages[:levels]))
    assert Tree.parse(str(tree)) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,8", "expected nodes/tokens"),
        ("1,8/64", "expected nodes/tokens"),
        ("1,0/64,16", "expected nodes/tokens"),
        ("1,-8/64,16", "expected nodes/tokens"),
        ("1,8/64,16/2", "expected nodes/tokens"),
        ("2,3/64,16", "multiples of those above"),
        ("1,8/60,16", "multiples of the page size, 16"),
    ],
)
def test_trees_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tree.parse(text)


def test_heads() -> None:
    assert Heads.parse("9/3/64") == Heads(9, 3, 64)
    assert str(Heads(9, 3, 64)) == "9/3/64"
    for text in ("9/3", "9/3/64/2", "9/0/64", "9/a/64", "9/2/64", "9//64"):
        with pytest.raises(ValueError, match="expected query heads/KV heads/head_dim"):
            Heads.parse(text)


# -- what is compared


@pytest.mark.parametrize("heads", [Heads(6, 2, 32), Heads(4, 4, 64)], ids=str)
def test_torch_and_ours_compute_the_same(heads: Heads) -> None:
    case = make_case(SMALL, heads, torch.float32)
    out, _ = case.pool.attend(0, case.q, plan(case.tables, case.lengths))
    k, v = replicated(case)
    theirs = scaled_dot_product_attention(case.q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    torch.testing.assert_close(out, theirs)
    # Every leaf has its own path: the reference on the replicated cache of one leaf after the other.
    for leaf in range(SMALL.queries):
        own = torch.arange(SMALL.path_tokens)[None]
        length, one = torch.tensor([SMALL.path_tokens]), torch.tensor([1])
        keys, values = k[leaf].transpose(0, 1), v[leaf].transpose(0, 1)
        true, *_ = reference.tree_attention(case.q[leaf : leaf + 1], keys, values, own, length, one)
        torch.testing.assert_close(out[leaf].double(), true[0], atol=1e-5, rtol=1e-5)
    assert len({k[leaf].sum().item() for leaf in range(SMALL.queries)}) == SMALL.queries


def test_the_floor_is_the_slower_of_reading_and_computing() -> None:
    second = Quartiles(1.0, 1.0, 1.0)
    reads = AttentionTimes(second, second, None, Machine(flops=1e9, bandwidth=1e6), 10**6, 10**6)
    assert (reads.floor, reads.bound) == (1.0, "read")
    computes = AttentionTimes(second, second, None, Machine(flops=1e5, bandwidth=1e9), 10**6, 10**6)
    assert (computes.floor, computes.bound) == (10.0, "flops")


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    times = interleaved(calls, 3)
    assert "".join(order) == "ab" + "ab" * 3
    assert set(times) == {"a", "b"}
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == Quartiles(2.0, 3.0, 4.0)


def test_rates_of_the_machine() -> None:
    peaks = Peaks(torch.bfloat16, torch.device("cpu"))
    seconds = dict.fromkeys(peaks.calls, 1.0) | {"read": 0.5, "product, torch.bfloat16": 0.25}
    assert len(seconds) == 3
    assert peaks.machine(seconds) == Machine(flops=2 * 64**3 / 0.25, bandwidth=2 * (1 << 16))


def test_no_curve_is_left_out(tmp_path: Path) -> None:
    curves = {f"engine {i}": [i + 1.0, i + 2.0] for i in range(13)}
    lines(tmp_path / "many.svg", [1, 2], curves, ("branches", "tokens/s"))
    drawn = (tmp_path / "many.svg").read_text()
    assert [name for name in curves if f">{name}<" not in drawn] == []


# -- decode and search


def test_decode_steps(decoder: TreeDecoder) -> None:
    shape = shape_of_config(decoder.model.config, torch.float32)
    stages: list[str] = []
    prefill, rates, results = measure_decode(
        decoder, shape, prompt=50, branches=[1, 3], tokens=4, rounds=2, on_stage=stages.append
    )
    assert prefill.low > 0
    assert rates.flops > 0
    assert stages[-1] == "round 2 of 2, 3 branches"
    # A page of 16 tokens each: 3 of the prompt, shared, and the fourth, which every branch has for itself.
    pages = [4, 3 + 3]
    assert [r.kv_bytes / decoder.stats().page_bytes for r in results] == pages
    for result in results:
        assert sum(result.shares.values()) == pytest.approx(1)
        assert set(result.shares) == {*PARTS.values(), "other operators", "Python and plan"}
        assert min(result.shares[part] for part in PARTS.values()) > 0
    # Twice the rates, half the floor; three branches read no weight more than one, and compute three times.
    assert results[0].floor < results[1].floor <= 3 * results[0].floor
    # In each of 2 rounds and the profile: 2 numbers of branches, 50 tokens of the prompt, 4 of each branch.
    assert decoder.stats().forward_tokens == 3 * (2 * 50 + 4 * (1 + 3))


def test_searches(model: PreTrainedModel) -> None:
    drawn = drawing.sample
    done: list[int] = []
    tasks = default_tasks(2)
    sampling = SamplingParams(1.0, max_tokens=6, max_step_tokens=3)
    for name in ("best_of_n", "rebase"):
        done.clear()
        times = measure_search(
            TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 24),
            STRATEGIES[name],
            tasks,
            n=3,
            sampling=sampling,
            on_task=done.append,
        )
        assert done == [0, 1]
        assert sum(times.shares().values()) == pytest.approx(1)
        assert min(times.model, times.sampling, times.engine, times.strategy) > 0
        assert 0 < times.tokens <= 2 * 3 * 6
    assert drawing.sample is drawn


# -- the command


def test_bench_attention(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plot = tmp_path / "roofline.svg"
    arguments = ("attention", SMALL, "1/64", "--heads", "6/2/32", "--dtype", "float32", "--rounds", 1)
    out = ran(capsys, *arguments, "--plot", plot)
    assert "one layer, 6/2/32, float32" in out
    assert "roofline" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "% of the roofline" in plot.read_text()
    result = json.loads(ran(capsys, *arguments, "--json"))
    assert [row["tree"] for row in result["trees"]] == [str(SMALL), "1/64"]
    for row, tree in zip(result["trees"], (SMALL, Tree((1,), (64,))), strict=True):
        assert (row["bytes"], row["flops"]) == (
            tree.min_bytes(Heads(6, 2, 32), 4),
            tree.flops(Heads(6, 2, 32)),
        )
        rates = row["machine"]
        floor = max(row["bytes"] / rates["bandwidth"], row["flops"] / rates["flops"])
        assert row["roofline_seconds"] == pytest.approx(floor)


def test_bench_decode(capsys: pytest.CaptureFixture[str], tmp_path: Path, gguf: Path) -> None:
    plot = tmp_path / "decode.png"
    arguments = (
        "decode",
        "-m",
        gguf,
        "--dtype",
        "float32",
        "-p",
        20,
        "-n",
        "2,1",
        "--tokens",
        3,
        "--rounds",
        1,
    )
    out = ran(capsys, *arguments, "--plot", plot)
    assert "a prompt of 20 tokens" in " ".join(out.split())  # the name of the file is long
    assert "matrix products" in out
    assert max(map(len, out.splitlines())) <= 80
    assert plot.read_bytes().startswith(b"\x89PNG")
    result = json.loads(ran(capsys, *arguments, "--json"))
    assert [row["branches"] for row in result["decode"]] == [1, 2]
    for row in result["decode"]:
        assert row["tokens_per_second"] == pytest.approx(row["branches"] / row["step_seconds"]["median"])


def test_positions_of_the_model_bound_the_prompt(capsys: pytest.CaptureFixture[str], gguf: Path) -> None:
    """A branch that ends early would be counted as if it had gone on."""
    arguments = ["bench", "decode", "-m", str(gguf), "-n", "1", "--tokens", "4", "--rounds", "1"]
    assert run([*arguments, "-p", "507"]) == 0
    assert run([*arguments, "-p", "508"]) == 2
    assert "--prompt: got 508, which with 5 tokens of each branch exceeds" in capsys.readouterr().err


def test_bench_search(capsys: pytest.CaptureFixture[str], tmp_path: Path, gguf: Path) -> None:
    plot = tmp_path / "search.svg"
    arguments: tuple[Any, ...] = ("search", "best_of_n", "ets", "-m", gguf, "--dtype", "float32", "-n", 3)
    arguments += ("--limit", 1, "--max-tokens", 6, "--max-step-tokens", 3)
    out = ran(capsys, *arguments, "--plot", plot)
    assert "1 problem, n = 3" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert "best_of_n" in plot.read_text()
    result = json.loads(ran(capsys, *arguments, "--json"))
    assert [row["strategy"] for row in result["searches"]] == ["best_of_n", "ets"]
    for row in result["searches"]:
        wall = row["seconds"].pop("wall")
        assert sum(row["seconds"].values()) == pytest.approx(wall)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "1,8"], "TREE: got '1,8', expected nodes/tokens of each level"),
        (["attention", "--heads", "9/2/64"], "--heads: got '9/2/64', expected"),
        (["attention", "--dtype", "int8"], "--dtype: got 'int8'"),
        (["attention", "--dtype", "float16"], "--dtype: got float16, expected float32, bfloat16 or auto"),
        (["attention", "--rounds", "0"], "--rounds: got 0, expected at least 1"),
        (["attention", "--threads", "0"], "--threads: got 0, expected at least 1"),
        (["attention", "--plot", "plot.pdf"], "--plot: got plot.pdf, expected a .svg or .png file"),
        (["attention", "--plot", "/no/such/plot.svg"], "--plot: there is no folder /no/such"),
        (["decode", "--prompt", "0"], "--prompt: got 0, expected at least 1"),
        (["decode", "--branches", "1,x"], "--branches: got '1,x', expected numbers with commas"),
        (["decode", "--branches", "0"], "--branches: got '0', expected numbers with commas"),
        (["search", "beam_serch"], "STRATEGY: got 'beam_serch', expected the name"),
        (["search", "--max-tokens", "0"], "--max-tokens: got 0"),
        (["search", "--limit", "0"], "--limit: got 0, expected at least 1"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
