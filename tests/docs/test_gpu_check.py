"""Parts of `make gpu-check` that need no GPU: its trees, baselines' inputs, phases and report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import Tensor
from tts_decode.bench.trees import HEADS, PAGE, TREES, Heads, Tree

from benches.gpu import baselines, bench, check, report
from benches.gpu.baselines import Case, make_case
from benches.gpu.timing import Ceilings

SMALL = Tree((2, 4, 12), (32, 16, 48))


def test_least_bytes_and_flops() -> None:
    tree, heads = Tree((1, 1024), (2048, 32)), Heads(32, 32)
    # 2,048 + 1,024 * 32 tokens of 32 heads, 128 channels of K and of V, 2 bytes; queries and outputs beside.
    assert tree.kv_bytes(heads) == 34_816 * 32 * 2 * 128 * 2
    assert tree.min_bytes(heads) - tree.kv_bytes(heads) == 2 * 1024 * 32 * 128 * 2
    # Each of 1,024 queries meets 2,080 tokens in 32 heads: 128 products and sums, for K and for V.
    assert tree.flops(heads) == 1024 * 2080 * 32 * 128 * 2 * 2
    assert Ceilings(bandwidth=2e12, rate=1e14).floor(4 * 10**6, 10**9) == pytest.approx(10e-6)
    assert Ceilings(bandwidth=2e12, rate=1e16).floor(4 * 10**6, 10**9) == pytest.approx(2e-6)


@pytest.mark.parametrize("tree", [*TREES, SMALL], ids=str)
def test_trees_share_pages_as_their_name_says(tree: Tree) -> None:
    tables = tree.block_tables(tree.level_pages())
    assert tables.shape == (tree.queries, tree.path_tokens // PAGE)
    assert len(np.unique(tables)) == tree.unique_tokens // PAGE
    column = 0
    for nodes, tokens in zip(tree.nodes, tree.tokens, strict=True):
        run = tables[:, column : column + tokens // PAGE]
        assert len(np.unique(run)) == nodes * tokens // PAGE
        assert len(np.unique(run, axis=0)) == nodes
        # Leaves below a node are consecutive.
        assert (np.diff(run[:, 0]) != 0).sum() == nodes - 1
        column += tokens // PAGE


def test_entries_that_matter_most_come_first() -> None:
    assert [str(heads) for heads in HEADS] == ["32/8/128", "32/32/128", "64/8/128", "16/1/128"]
    assert len(TREES) == 9


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and lse of queries [n, heads, d] over HND pages [m, kv_heads, PAGE, d], float64."""
    k, v = (t.double().transpose(1, 2).flatten(0, 1) for t in (k, v))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    logits = torch.einsum("qhd,khd->qhk", q.double(), k) * q.shape[-1] ** -0.5
    return torch.einsum("qhk,khd->qhd", logits.softmax(-1), v), logits.logsumexp(-1)


class FakeDecode:
    """FlashInfer's decode wrapper by its documentation, in float64."""

    def __init__(self, workspace: Tensor, layout: str, *, use_tensor_cores: bool) -> None:
        assert layout == "HND"

    def plan(self, indptr: Tensor, indices: Tensor, last: Tensor, *shape: int, **dtypes: torch.dtype) -> None:
        self.pages = [indices[a:b] for a, b in pairwise(indptr.tolist())]
        assert len(last) == len(self.pages)
        assert (last == PAGE).all()

    def run(self, q: Tensor, pages: tuple[Tensor, Tensor]) -> Tensor:
        k, v = pages
        return torch.cat([attend(q[i : i + 1], k[p], v[p])[0] for i, p in enumerate(self.pages)])


class FakeCascade:
    """FlashInfer's cascade by its documentation: each level's attention, merged by lse."""

    def __init__(self, levels: int, workspace: Tensor, layout: str) -> None:
        assert layout == "HND"
        self.levels = levels

    def plan(
        self,
        queries: list[Tensor],
        indptr: list[Tensor],
        indices: list[Tensor],
        last: list[Tensor],
        *shape: int,
        **dtypes: torch.dtype,
    ) -> None:
        assert self.levels == len(queries) == len(indptr) == len(indices) == len(last)
        self.queries, self.indptr, self.indices = queries, indptr, indices

    def run(self, q: Tensor, pages: tuple[Tensor, Tensor]) -> Tensor:
        outs, lses = [], []
        for queries, indptr, indices in zip(self.queries, self.indptr, self.indices, strict=True):
            assert queries[-1] == len(q)
            runs = [indices[a:b] for a, b in pairwise(indptr.tolist())]
            rows = [q[a:b] for a, b in pairwise(queries.tolist())]
            parts = [attend(r, pages[0][p], pages[1][p]) for r, p in zip(rows, runs, strict=True)]
            outs.append(torch.cat([out for out, _ in parts]))
            lses.append(torch.cat([lse for _, lse in parts]))
        weights = torch.stack(lses).softmax(0)[..., None]
        return (weights * torch.stack(outs)).sum(0)


METHODS = {
    "decode": lambda case: baselines.flashinfer_decode(case, tensor_cores=True),
    "cascade": baselines.flashinfer_cascade,
    "flex": lambda case: baselines.flex_attention(case, compiled=False),
    "sdpa": baselines.sdpa,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tree", [SMALL, Tree((3,), (32,)), Tree((1, 5), (64, 16))], ids=str)
def test_baselines_are_given_the_same_attention(
    tree: Tree, method: str, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    fake = SimpleNamespace(
        BatchDecodeWithPagedKVCacheWrapper=FakeDecode, MultiLevelCascadeAttentionWrapper=FakeCascade
    )
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    monkeypatch.setattr(baselines, "WORKSPACE_BYTES", 1)
    torch.manual_seed(0)
    case = make_case(tree, Heads(4, 2), "cpu")
    case.k_pages[tree.unique_tokens // PAGE :] = torch.nan  # the pages to grow into
    true = bench.expected(case, list(range(tree.queries)))
    assert bench.relative_error(METHODS[method](case)(), true) < bench.WRONG


def test_wrong_methods_are_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    def raising(case: Case) -> baselines.Call:
        raise RuntimeError("no kernel for this shape\nand more")

    methods = {
        "right": baselines.sdpa,
        "nan": lambda case: lambda: torch.full_like(case.q, torch.nan),
        "blind to the last page": lambda case: baselines.sdpa(replace(case, tables=case.tables[:, :-1])),
        "raising": raising,
        "absent": lambda case: __import__("no_such_package"),
        "skipped": raising,
    }
    monkeypatch.setattr(bench, "METHODS", methods)
    calls, results = bench.prepare(make_case(SMALL, Heads(4, 2), "cpu"), {"skipped": "no time"})
    assert list(calls) == ["right"]
    assert "left_out" not in results["right"]
    assert results["nan"]["left_out"].startswith("wrong")
    assert results["blind to the last page"]["left_out"].startswith("wrong")
    assert results["raising"]["left_out"] == "RuntimeError: no kernel for this shape"
    assert "no_such_package" in results["absent"]["left_out"]
    assert results["skipped"]["left_out"] == "no time"


def run(tmp_path: Path, *commands: str, limit: float = 30) -> check.Phase:
    return check.run("phase", [[sys.executable, "-c", c] for c in commands], limit, tmp_path / "phase.log")


def test_phases_pass_and_fail(tmp_path: Path) -> None:
    assert run(tmp_path, "print('one')", "print('two')")[:2] == ("phase", "passed")
    assert (tmp_path / "phase.log").read_text() == "one\ntwo\n"
    failed = run(tmp_path, "import sys; sys.exit('bad news')", "print('not reached')")
    assert (failed.outcome, failed.summary) == ("failed", "bad news")
    missing = check.run("phase", [["no-such-program"]], 30, tmp_path / "missing.log")
    assert missing.outcome == "failed"
    assert "no-such-program" in missing.summary


def test_a_phase_out_of_time_ends_with_its_children(tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    parent = "import subprocess, sys; print('begun', flush=True); "
    phase = run(tmp_path, parent + f"subprocess.run([sys.executable, '-c', {child!r}])", limit=3)
    assert (phase.outcome, phase.summary) == ("timed out", "begun")
    time.sleep(2)
    assert not (tmp_path / "alive").exists()


def test_records_before_a_cut_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    assert check.read_results(file) == []
    file.write_text('{"kind": "ceilings", "bandwidth": 1.0}\n{"kind": "attention", "tre')
    assert check.read_results(file) == [{"kind": "ceilings", "bandwidth": 1.0}]


def times(cold: float, warm: float) -> dict[str, Any]:
    """Medians in microseconds, quartiles 1 us off."""
    return {name: [(t - 1) * 1e-6, t * 1e-6, (t + 1) * 1e-6] for name, t in (("cold", cold), ("warm", warm))}


def entry(**methods: Any) -> dict[str, Any]:
    return {
        "kind": "attention",
        "tree": "1,8/64,16",
        "heads": "32/8",
        "kv_bytes": 50 * 10**6,
        "min_bytes": 60 * 10**6,
        "flops": 2 * 10**9,
        "methods": methods,
        "plan": {"full": [1e-4, 2e-4, 3e-4], "incremental": [1e-5, 2e-5, 3e-5]},
    }


def test_report_of_an_entry() -> None:
    measured = entry(
        triton={"error": 1e-3} | times(50, 40),
        cuda={"error": 1e-3} | times(40, 30),
        **{
            "cuda graph": times(38, 29),
            "flashinfer decode": times(100, 90),
            "flashinfer decode, tensor cores": times(80, 70),
            "flex_attention": {"left_out": "no time"},
        },
    )
    row = report.attention_row(measured, Ceilings(bandwidth=3e12, rate=8e14))
    cells = dict(zip(report.COLUMNS, row, strict=True))
    assert cells["floor, us"] == "20.0"
    assert cells["ours, us"] == "40.0 ± 1.0 (cuda)"
    assert cells["of the roofline"] == "50%"
    assert cells["x FlashInfer decode"] == "2.00"
    assert cells["x FlexAttention"] == cells["x SDPA"] == ""
    details = dict(zip(report.DETAILS, report.detail_row(measured), strict=True))
    assert details["warm L2, us"] == "30.0 ± 1.0"
    assert details["in a graph, us"] == "38.0 ± 1.0"
    assert (details["GB/s"], details["TFLOP/s"]) == ("1500", "50.0")
    assert (details["plan, us"], details["next plan, us"]) == ("200", "20")


def test_report_of_sparse_steps() -> None:
    times = {name: {"cold": [t - 1e-6, t, t + 1e-6]} for name, t in {"sparse": 1e-5, "dense": 6e-5}.items()}
    record = {
        "kind": "sparse",
        "tree": "1,16/32768,16",
        "heads": "32/8",
        "budget": 256,
        "error": 1e-3,
        "methods": times,
        "left_out": {"flashinfer cascade": "not installed"},
    }
    broken = record | {"error": float("nan"), "left_out": {}}
    text = report.markdown({"machine": {}, "phases": [], "results": [record, broken]})
    assert "| `1,16/32768,16` | sparse | 10.0 ± 1.0 | 1.00 |" in text
    assert "| `1,16/32768,16` | dense | 60.0 ± 1.0 | 6.00 |" in text
    assert "Largest relative error over the chosen pages: nan" in text
    assert "Left out: flashinfer cascade: not installed" in text


def test_the_page_has_the_columns_of_the_report() -> None:
    page = (check.ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert "| " + " | ".join(report.COLUMNS) + " |" in page
    for tree in TREES:
        assert f"| 32/8/128 | {tree} | {tree.kv_bytes(Heads(32, 8)) / 1e6:.1f} |" in page


def test_report_names_what_was_left_out_and_what_failed() -> None:
    absent = {"left_out": "No module named 'flashinfer'"}
    entries = [
        entry(triton={"error": 1e-3} | times(50, 40), **{"flashinfer decode": absent}),
        entry(
            triton={"error": float("nan"), "left_out": "wrong: relative error nan"},
            **{"flashinfer decode": absent},
        ),
    ]
    results = [
        {"kind": "ceilings", "bandwidth": 3e12, "rate": 8e14},
        *entries,
        {"kind": "kv_ops", "failed": "RuntimeError: nothing"},
    ]
    phases = [{"name": "build", "outcome": "failed", "seconds": 3.0, "summary": "no nvcc"}]
    text = report.markdown({"machine": {"GPU": "none"}, "phases": phases, "results": results})
    assert "| build | failed | 3 | no nvcc |" in text
    assert "* flashinfer decode, on every entry: No module named 'flashinfer'" in text
    assert "* triton, on 32/8 `1,8/64,16`: wrong: relative error nan" in text
    assert "triton nan" in text
    assert "Failed: kv_ops : RuntimeError: nothing" in text


def test_report_is_written_whatever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"kind": "ceilings", "bandwidth": 3e12, "rate": 8e14})
    measure = f"import sys; open(sys.argv[3], 'a').write({line!r})"

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if "benches.gpu.bench" in command:
            command = [sys.executable, "-c", measure, *command[2:]]
        else:
            command = ["false" if command[0] == "cmake" else "true"]
        return original(command, **options)

    original = subprocess.Popen
    monkeypatch.setattr(check.subprocess, "Popen", popen)
    monkeypatch.setattr(check, "machine", lambda: {"GPU": "none"})
    with pytest.raises(typer.Exit) as exit_:
        check.main(tmp_path / "out")
    assert exit_.value.exit_code == 1
    written = json.loads((tmp_path / "out/report.json").read_text())
    outcomes = {phase["name"]: phase["outcome"] for phase in written["phases"]}
    assert outcomes.pop("build") == "failed"
    assert list(outcomes) == ["device", "tests", "memcheck", "racecheck", "bench"]
    assert set(outcomes.values()) == {"passed"}
    assert "3000 GB/s" in (tmp_path / "out/report.md").read_text()


def test_limits_leave_time_for_the_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, float] = {}

    def run(name: str, commands: list[list[str]], limit: float, log: Path) -> check.Phase:
        limits[name] = limit
        clock.now += limit
        return check.Phase(name, "timed out", limit, "")

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(check, "machine", dict)
    monkeypatch.setattr(check.time, "monotonic", lambda: clock.now)
    with pytest.raises(typer.Exit):
        check.main(tmp_path)
    assert sum(limits.values()) <= 540
    assert limits["bench"] >= 60


@pytest.mark.parametrize("module", ["bench", "check"])
def test_help(module: str) -> None:
    command = [sys.executable, "-m", f"benches.gpu.{module}", "--help"]
    done = subprocess.run(command, cwd=check.ROOT, env=check.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_bench_without_a_gpu_says_so() -> None:
    with pytest.raises(SystemExit, match="no GPU"):
        bench.main()
