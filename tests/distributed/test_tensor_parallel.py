"""One model over several ranks: the text of one process, and how ranks end that differ or die."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mesh_worker
import numpy as np
import pytest
import torch
from mesh_processes import Ended, run_ranks
from mesh_worker import HEADS
from needed import ALL_INSTALLED
from tiny_models import byte_tokenizer, tiny_model
from tts_decode.cli.ranks import mesh_of_torchrun
from tts_decode.errors import MeshError
from tts_decode.model.host_steps import StepInputs
from tts_decode.model.parallel.messages import Message, of_step, step_of
from tts_decode.model.parallel.ranks import bounds

EXACT = ["float32", "general", "gemma2", "nemotron", "qwen3", "tied"]
QUANTISED = ["int8", "int4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(**HEADS).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Ended:
    """Results of two ranks, started once, in all cases."""
    folder = tmp_path_factory.mktemp("two")
    cases = *EXACT, *QUANTISED, "strategies", "refusals"
    return run_ranks(2, folder, *cases, TINY_CHECKPOINT=str(checkpoint))


def agree(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found["tokens"] == expected["tokens"]
    for name in ("logprobs", "next"):
        pairs = zip(found[name], expected[name], strict=True)
        for got, wanted in pairs:
            torch.testing.assert_close(
                torch.tensor(got), torch.tensor(wanted), atol=tolerance, rtol=0, msg=lambda text: text
            )


@pytest.mark.parametrize("case", EXACT)
def test_two_ranks_have_the_text_of_one_process(two: Ended, case: str) -> None:
    assert two.codes == [0, 0], two.errors
    agree(two.found[case], getattr(mesh_worker, case)(None), 1e-4)


@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_weights_give_the_same_distribution(
    two: Ended, case: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of x become int8, so the last bit of a sum over ranks may move a whole step: on one prompt."""
    monkeypatch.setenv("TINY_CHECKPOINT", str(checkpoint))
    expected = torch.tensor(getattr(mesh_worker, case)(None)["next"])
    found = torch.tensor(two.found[case]["next"])
    assert float((found.exp() - expected.exp()).abs().sum()) < 0.1


def test_strategies_decide_the_same(two: Ended) -> None:
    """The cost covers the whole model: it counts each forward, so other decisions would change it."""
    assert two.found["strategies"] == mesh_worker.strategies(None)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kv_offload", "ValueError: kv_offload: got KVOffload"),
        ("sparse", "ValueError: sparse: got SparseConfig"),
        ("track_mass", "ValueError: track_mass: got True"),
        ("kv_dtype", "ValueError: kv_dtype: got torch.int8"),
        ("kv heads", "got 2 ranks for a model with num_key_value_heads 1"),
        ("width", "got 2 ranks for a model with intermediate_size 80"),
        ("mixture", "UnsupportedModelError: device_mesh: MixtralForCausalLM: layer 0 has a mixture"),
        ("fused", "qkv_proj holds queries, keys and values in one module"),
        ("no plan", "MptForCausalLM has no plan for tensor parallelism"),
        ("timeout", "ValueError: mesh_timeout: got 0"),
    ],
)
def test_what_ranks_do_not_serve_is_refused_by_name(two: Ended, name: str, told: str) -> None:
    assert told in two.found["refusals"][name]


def test_a_killed_rank_ends_all(tmp_path: Path) -> None:
    ended = run_ranks(2, tmp_path, "killed")
    assert ended.codes == [3, -9]
    assert ended.errors[0].startswith("MeshError: rank 0 of 2: rank 1 (process ")
    assert "ended while the ranks" in ended.errors[0]


def test_a_rank_that_hangs_ends_all(tmp_path: Path) -> None:
    """The leader gives it up in time; the one that hung finds the others gone."""
    ended = run_ranks(2, tmp_path, "hanging")
    assert ended.codes == [3, 3]
    assert (
        "MeshError: rank 0 of 2: another rank closed its connection, or was silent for 4 s,"
        in ended.errors[0]
    )
    assert ended.errors[1].startswith("MeshError: rank 1 of 2: rank 0 (process ")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_never_comes_ends_the_command(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """torch alone waits for half an hour."""
    monkeypatch.setattr("tts_decode.cli.ranks._ARRIVAL_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    of_torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": str(rank)}
    for name, value in (of_torchrun | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MeshError, match=f"rank {rank} of 2: another rank did not come within 1 s"):
        mesh_of_torchrun("cpu")


def test_ranks_with_other_weights_end_with_one_error(tmp_path: Path) -> None:
    ended = run_ranks(2, tmp_path, "other_weights")
    assert ended.codes == [3, 3]
    assert ended.errors[0] == ended.errors[1]
    assert "MeshError: the ranks differ: rank 1 of 2 has the weights: " in ended.errors[0]


def test_a_step_goes_through_a_message_and_back() -> None:
    """Of the fields that the others need, with holes and copies."""

    def ints(values: Any) -> Any:
        return np.array(values, np.int32)

    tables = ints([[4, -1, 5], [4, 2, 0]])
    slots, copies = ints([80, 81, 33]), ints([[3, 5]])
    step = StepInputs([7, 8, -1], [34, 35, 17], [1, 2], slots, copies, tables, ints([36, 18]), ints([2, 1]))
    step = step._replace(embeds=torch.ones(1, 6))
    message = of_step(step, 9, hidden=True)
    got, hidden = step_of(message)
    assert hidden
    for name in ("tokens", "positions", "rows"):
        assert getattr(got, name) == getattr(step, name)
    for name in ("slots", "copies", "tables", "lengths", "counts"):
        assert getattr(got, name).tolist() == getattr(step, name).tolist()
    assert torch.equal(got.embeds, step.embeds)
    broken = message.numbers.clone()
    broken[3] += 1
    with pytest.raises(ValueError, match="damaged"):
        step_of(Message(message.header, broken, message.embeds))


def test_bounds_are_whole_units() -> None:
    assert bounds(260, 4, 16) == [(0, 80), (80, 160), (160, 240), (240, 260)]
    assert bounds(10, 3) == [(0, 4), (4, 8), (8, 10)]


# -- longer ones, by `make distributed`

more = pytest.mark.skipif(os.environ.get(ALL_INSTALLED) != "1", reason="takes minutes: make distributed")


@more
@pytest.mark.parametrize(("size", "case"), [(4, "float32"), (4, "general"), (4, "strategies"), (2, "wide")])
def test_more_ranks_and_wider_models(tmp_path: Path, size: int, case: str) -> None:
    ended = run_ranks(size, tmp_path, case)
    assert ended.codes == [0] * size, ended.errors
    expected = getattr(mesh_worker, case)(None)
    if case == "strategies":
        assert ended.found[case] == expected
    else:
        agree(ended.found[case], expected, 1e-4)


@more
@pytest.mark.model
def test_three_ranks_of_the_default_model(tmp_path: Path) -> None:
    ended = run_ranks(3, tmp_path, "default_model")
    assert ended.codes == [0, 0, 0], ended.errors
    agree(ended.found["default_model"], mesh_worker.default_model(None), 1e-4)


@more
def test_bfloat16(tmp_path: Path) -> None:
    """Sums of two parts are rounded elsewhere: the prompt's distribution alone is compared."""
    ended = run_ranks(2, tmp_path, "bfloat16")
    found, expected = ended.found["bfloat16"]["next"], mesh_worker.bfloat16(None)["next"]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=0.1, rtol=0)


@more
@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("own_failure", "the decoder's arguments: rank 1 of 2 ended with ValueError: track_mass: got True"),
        ("drifted", "rank 1 of 2 has other hidden states than rank 0 at step 32"),
    ],
)
def test_ranks_that_differ_end(tmp_path: Path, case: str, told: str) -> None:
    ended = run_ranks(2, tmp_path, case)
    assert ended.codes == [3, 3]
    assert told in ended.errors[0]


@more
def test_weights_that_change_are_an_error_of_the_leader(tmp_path: Path) -> None:
    """The other rank ends as it does after a search."""
    ended = run_ranks(2, tmp_path, "trained")
    assert ended.codes == [3, 0]
    assert "its weights changed while rank 0" in ended.errors[0]


@more
def test_a_leader_that_is_busy_elsewhere_is_not_lost(tmp_path: Path) -> None:
    ended = run_ranks(2, tmp_path, "idle")
    assert ended.codes == [0, 0], ended.errors


@more
@pytest.mark.model
def test_the_command_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks of the default model print the search of one process, and rank 0 alone prints."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["-m", "tts_decode", "search", "What is 3 + 4?", "-s", "best_of_n", "-o", "n=2"]
    command += ["--max-tokens", "12", "--dtype", "float32", "--json"]
    alone, ranks = (
        subprocess.run([sys.executable, *start, *command], capture_output=True, text=True, timeout=300)
        for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"])
    )
    assert ranks.returncode == 0, ranks.stderr
    found, expected = (json.loads(run.stdout)["results"][0]["search"]["tree"] for run in (ranks, alone))
    assert [node["tokens"] for node in found] == [node["tokens"] for node in expected]
    assert ranks.stderr.count("opening ") == 1
