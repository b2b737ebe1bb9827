"""The comparison with other engines: its processes, what comes of their answers, and the models' files."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny_model
from tts_decode.model.loading import load_model

from benches import decode_comparison
from benches.decode_comparison import closing, measure_fastest, start, table, tokens_for, try_all
from benches.peers import engines
from benches.peers.adapter import difference
from benches.peers.engines import Engine, PeerError, Process
from benches.peers.models import write_gguf

PEER = """
    import sys, time
    from adapter import serve

    class Fake:
        def __init__(self, options):
            print("noise of a library")
            if options.get("broken"):
                raise ImportError("no such library")
            self.about = {"model": options["model"]}
            self.slow = options.get("slow", 1)
            self.calls = 0

        def measure(self, prompt, branches, tokens):
            self.calls += 1
            if branches == 64:
                raise MemoryError("too many")
            if branches == 32 and self.slow > 1:
                time.sleep(60)
            # A step takes 2 ms a branch, and ever more from call to call; the prompt 1 ms a token.
            return len(prompt) * 1e-3, tokens * branches * 2e-3 * self.slow * (1 + self.calls / 1e3)

    serve(Fake)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters that only say how long they took, in our own environment."""
    (tmp_path / "fake.py").write_text(textwrap.dedent(PEER))
    (tmp_path / "adapter.py").write_text((engines.HERE / "adapter.py").read_text())
    monkeypatch.setattr(engines, "HERE", tmp_path)
    settings = {
        "swift, plain": Engine("fake", "", "folder", {"slow": 2}),
        "swift, hopeless": Engine("fake", "", "folder", {"slow": 4}),
        "swift, tuned": Engine("fake", "", "folder"),
        "slow": Engine("fake", "", "folder", {"slow": 100}),
        "broken": Engine("fake", "", "folder", {"broken": True}),
        "absent": Engine("fake", "no such environment", "folder"),
        "other form": Engine("fake", "", "Q4_1"),
    }
    monkeypatch.setattr(decode_comparison, "ENGINES", settings)
    monkeypatch.setattr(decode_comparison, "PATIENCE", 10.0)
    return tmp_path


def test_engines_take_turns_and_failures_are_told(fakes: Path) -> None:
    failed: dict[str, str] = {}
    tried: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    with closing() as processes:
        start(processes, decode_comparison.ENGINES, {"folder": fakes}, fakes, {}, failed)
        assert processes["swift, tuned"].about["model"] == str(fakes)
        for branches in (1, 32, 64):
            now = try_all(processes, (100, branches), 0.5, failed)
            tried += now
            records += measure_fastest(processes, now, tokens=30, rounds=3, seconds=0.5, failed=failed)
        assert not processes
    assert failed == {
        "broken": "ImportError: no such library",
        "absent": "not installed; run with --setup",
        "other form": "the model does not come as Q4_1",
        "slow, 100 tokens, 32 branches": "took more than 5 s",
        "swift, plain, 100 tokens, 32 branches": "took more than 5 s",
        "swift, tuned, 100 tokens, 64 branches": "MemoryError: too many",
    }
    assert [(r["setting"], r["branches"]) for r in tried] == [
        ("swift, plain", 1),
        ("swift, hopeless", 1),
        ("swift, tuned", 1),
        ("slow", 1),
        ("swift, tuned", 32),
    ]
    measured = {(r["setting"], r["branches"]): r for r in records}
    assert set(measured) == {("swift, tuned", 1), ("slow", 1), ("swift, tuned", 32)}
    one = measured["swift, tuned", 1]
    assert (one["engine"], one["tokens"], len(one["runs"])) == ("swift", 30, 3)
    assert one["prefill_seconds"] == pytest.approx(0.1)
    # A step of 32 branches takes 64 ms: 7 of them fit into half a second.
    assert measured["swift, tuned", 32]["tokens"] == 7
    for record in records:
        speeds = [record["branches"] * record["tokens"] / run["decode"] for run in record["runs"]]
        assert speeds == sorted(speeds, reverse=True)  # each call was slower than the one before
        assert record["tokens_per_second"] == speeds[1]
        assert record["spread"] == [speeds[2], speeds[0]]
    lines = table(records, tried, 100).splitlines()
    assert lines[0] == "| engine | 1 | 32 | prefill, s | growth, MiB |"
    assert lines[2].startswith("| swift | 49")


def test_what_failed_comes_back_with_the_next_prompt(fakes: Path) -> None:
    names, failed = ("swift, tuned", "swift, hopeless", "broken"), dict[str, str]()
    settings = {name: decode_comparison.ENGINES[name] for name in names}
    tried = []
    with closing() as processes:
        for prompt in (100, 50):
            start(processes, settings, {"folder": fakes}, fakes, {}, failed)
            for branches in (1, 64):
                tried += try_all(processes, (prompt, branches), 0.5, failed)
    assert [(r["setting"], r["prompt"]) for r in tried] == [
        ("swift, tuned", 100),
        ("swift, hopeless", 100),
        ("swift, tuned", 50),
        ("swift, hopeless", 50),
    ]
    assert [name for name in failed if name.startswith("swift")] == [
        "swift, tuned, 100 tokens, 64 branches",
        "swift, tuned, 50 tokens, 64 branches",
    ]


def test_a_difference_within_the_noise_is_not_known() -> None:
    assert difference(0.5, 2.5, 0.7) == pytest.approx(1.9)
    assert difference(0.5, 0.8, 0.7) == 0  # 0.2 s of decoding, where the runs of one token differ as much
    assert difference(0.7, 0.5, 0.7) == 0


UNSURE = """
    from adapter import serve

    class Unsure:
        def __init__(self, options):
            self.about, self.calls = {}, 0

        def measure(self, prompt, branches, tokens):
            self.calls += 1
            return 0.1, 0.0 if self.calls in UNKNOWN else 0.2 * branches

    UNKNOWN = (3, 5, 6, 8, 9)  # the first call comes while it loads
    serve(Unsure)
"""


def test_what_is_not_known_neither_wins_nor_counts(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fakes / "unsure.py").write_text(textwrap.dedent(UNSURE))
    failed: dict[str, str] = {}
    with closing() as processes:
        start(processes, {"unsure": Engine("unsure", "", "folder")}, {"folder": fakes}, fakes, {}, failed)
        rounds = []
        for branches in (1, 2, 3, 4):
            tried = try_all(processes, (10, branches), 0.5, failed)
            rounds.append((len(tried), measure_fastest(processes, tried, 8, 2, 0.5, failed)))
    (one, first), (two, second), (three, third), (four, fourth) = rounds
    assert (one, len(first[0]["runs"])) == (1, 1)
    assert (two, second) == (0, [])
    assert (three, third) == (0, [])
    assert (four, fourth) == (1, [])
    assert failed == {
        "unsure, 10 tokens, 4 branches": "its runs of one token differed as much as its decoding took"
    }


def test_a_process_that_ends_is_a_failure(fakes: Path) -> None:
    (fakes / "fake.py").write_text('print(\'{"of": "itself"}\', flush=True)')
    process = Process(Engine("fake", "", "folder"), fakes, {"model": ""}, 20)
    assert process.about == {"of": "itself"}
    with pytest.raises(PeerError, match="its process ended"):
        process.measure([1, 2], 1, 1, 20)


PARENT = """
    import subprocess, sys
    from adapter import serve

    CHILD = "import sys; [print(len(b'x' * int(line)), flush=True) for line in sys.stdin]"

    class Parent:
        def __init__(self, options):
            pipe = subprocess.PIPE
            self.child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, text=True)
            self.about = {"child": self.child.pid}

        def measure(self, prompt, branches, tokens):
            print(tokens << 20, file=self.child.stdin, flush=True)
            self.child.stdout.readline()
            return 1.0, 1.0

    serve(Parent)
"""


def test_processes_of_an_engine_count_stop_and_end_with_it(fakes: Path) -> None:
    (fakes / "parent.py").write_text(textwrap.dedent(PARENT))
    process = Process(Engine("parent", "", "folder"), fakes, {"model": ""}, 20)
    status = Path(f"/proc/{process.about['child']}/status")

    def wait_for(state: str) -> None:
        deadline = time.monotonic() + 20
        while (
            status.exists() and f"State:\t{state}" not in status.read_text() and time.monotonic() < deadline
        ):
            time.sleep(0.05)

    try:
        growth = [process.measure([1], 1, mib, 20)["growth"] / 2**20 for mib in (100, 10)]
        wait_for("T")
        assert "State:\tT" in status.read_text()  # it takes no time from the others
    finally:
        process.close()
    assert growth == [pytest.approx(100, abs=8), pytest.approx(10, abs=8)]
    wait_for("Z")
    assert not status.exists() or "State:\tZ" in status.read_text()  # maybe nobody asks how it ended


def test_steps_that_fit() -> None:
    assert tokens_for(0.01, 32, 8) == 32
    assert tokens_for(1.0, 32, 8) == 8
    assert tokens_for(100.0, 32, 8) == 2


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_gguf_holds_the_same_model(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of q and k in the order of GGUF, another file's tokenizer: read back, equal logits and texts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_tiny_gguf(tmp_path / "tokenizer.gguf")
    _, tokenizer = load_model(tmp_path / "tokenizer.gguf", "float32")
    model = tiny_model(vocab_size=len(tokenizer), num_hidden_layers=2, head_dim=16, tie_word_embeddings=True)
    if kind == "BF16":
        with torch.no_grad():
            for weight in model.parameters():  # rotary frequencies stay as they are
                weight.copy_(weight.bfloat16())
    write_gguf(model, kind, tmp_path / "tiny.gguf", tmp_path / "tokenizer.gguf")
    read, copied = load_model(tmp_path / "tiny.gguf", "float32")
    assert copied("Yes, he").input_ids == tokenizer("Yes, he").input_ids
    ids = torch.randint(len(tokenizer), (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
