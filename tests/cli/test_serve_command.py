"""`tts-decode serve`: from the command to an answer, and to its end by a signal."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_models import byte_tokenizer, tiny_model
from tts_decode.cli.app import run
from tts_decode.cli.serve import Settings
from tts_decode.serve.config import Limits

COMMAND = [sys.executable, "-m", "tts_decode", "serve"]
KEY = "a-key-for-the-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "little"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def start(
    folder: Path, tmp_path: Path
) -> Iterator[Callable[..., tuple[subprocess.Popen[str], httpx.Client]]]:
    """Starts the command; gives its process and a client of it. An event loop of another package, with which
    a signal would not end the process by its code, is there and must not be used."""
    (tmp_path / "uvloop.py").write_text("raise RuntimeError('uvloop is used')")
    running: list[tuple[subprocess.Popen[str], httpx.Client]] = []

    def begin(*options: str) -> tuple[subprocess.Popen[str], httpx.Client]:
        command = [*COMMAND, "--model", str(folder), "--dtype", "float32", "--port", "0", "--kv-mib", "16"]
        environment = os.environ | {
            "TTS_DECODE_API_KEYS": KEY,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(tmp_path),
        }
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"serving little on (http://127\.0\.0\.1:\d+)/v1", line):
                break
        else:
            raise AssertionError("it does not serve")
        headers = {"Authorization": f"Bearer {KEY}"}
        running.append((process, httpx.Client(base_url=found[1], headers=headers, timeout=60)))
        for _ in range(300):
            with contextlib.suppress(httpx.ConnectError):
                running[-1][1].get("/health")
                break
        return running[-1]

    yield begin
    for process, client in running:
        client.close()
        process.kill()
        process.communicate()


def test_it_serves_until_a_signal_ends_it(start: Callable[..., Any]) -> None:
    process, client = start()
    answer = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 4, "model": "little"})
    assert answer.status_code == 200, answer.text
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "POST /v1/completions 200" in rest
    assert KEY not in rest
    assert "Traceback" not in rest


LONG = {"prompt": "x", "n": 128, "max_tokens": 500, "stream": True, "logit_bias": {"256": -100}}


def test_a_second_signal_ends_it_at_once(start: Callable[..., Any]) -> None:
    process, client = start("--grace", "inf")
    with client.stream("POST", "/v1/completions", json=LONG) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        process.send_signal(signal.SIGTERM)
        while _takes_connections(client):  # until it has seen the signal; the request continues
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in chunks:
                pass


@pytest.mark.parametrize("grace", ["0", "0.2"])
def test_requests_get_the_time_that_is_asked_for(start: Callable[..., Any], grace: str) -> None:
    process, client = start("--grace", grace)
    with client.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        *_, error, _, done, _ = lines
    assert done == "data: [DONE]"
    assert "the server is shutting down" in error
    assert process.wait(30) == 143


def test_a_start_with_too_little_memory_says_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A page of 16 tokens, K and V of 6 layers, 2 heads, 32 floats: 49,152 bytes, of which 1 MiB holds 21.
    tiny_model(num_hidden_layers=6).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    arguments = ["serve", "--model", str(tmp_path), "--dtype", "float32", "--kv-mib", "1", "--port", "0"]
    assert run(arguments) == 2
    told = capsys.readouterr().err
    assert "--kv-mib: got 1, whose pages hold 336 tokens" in told
    assert "expected at least 2, for 512 tokens" in told


def _takes_connections(client: httpx.Client) -> bool:
    try:
        httpx.get(f"{client.base_url}/health")
    except httpx.TransportError:
        return False
    return True


def test_the_defaults_of_the_options_are_those_of_the_limits() -> None:
    assert Limits(**Settings().limits()) == Limits()


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--api-keys", "/no/such/file"], 2, "--api-keys: /no/such/file cannot be read as a file of keys"),
        (["--max-tokens", "0"], 2, "--max-tokens: got 0, expected an integer from 1 to 1073741824"),
        (["--max-choices", "0"], 2, "--max-choices: got 0"),
        (["--max-request-tokens", "-1"], 2, "--max-request-tokens: got -1"),
        (["--max-search-tokens", "0"], 2, "--max-search-tokens: got 0"),
        (["--max-seconds", "nan"], 2, "--max-seconds: got nan"),
        (["--max-body-kib", "-2"], 2, "--max-body-kib: got -2"),
        (["--max-sequences", "0"], 2, "--max-sequences: got 0"),
        (["--max-client-sequences", "0"], 2, "--max-client-sequences: got 0"),
        (["--retain", "-1"], 2, "--retain: got -1, expected an integer from 0 to 1048576"),
        *(
            ([option, str(10**20)], 2, f"{option}: got {10**20}, expected a")
            for option in (
                *("--max-tokens", "--max-choices", "--max-request-tokens", "--max-search-tokens"),
                *("--max-body-kib", "--max-sequences", "--max-client-sequences", "--retain"),
            )
        ),
        (["--max-seconds", "1e20"], 2, "--max-seconds: got 1e+20, expected a number from 0.001 to 2592000"),
        (["--max-seconds", "inf"], 2, "--max-seconds: got inf, expected a number from"),
        (["--grace", "1e20"], 2, "--grace: got 1e+20, expected seconds from 0 to 86400, or inf"),
        (["--port", str(10**20)], 2, f"--port: got {10**20}, expected 0 to 65535"),
        (["--max-body-kib", "0"], 2, "--max-body-kib: got 0, expected an integer from 1 to 1048576"),
        (
            ["--max-sequences", "8", "--max-client-sequences", "9"],
            2,
            "--max-client-sequences: got 9, expected at most 8",
        ),
        (["--name", ""], 2, "--name: got '', expected"),
        (["--host", " "], 2, "--host: got ' ', expected"),
        (["--grace", "-1"], 2, "--grace: got -1"),
        (["--grace", "nan"], 2, "--grace: got nan"),
        (["--scorer", "x"], 2, "expected NAME=READER:FOLDER"),
        (["--scorer", "x=nothing:folder"], 2, "expected one of"),
        (["--replicas", "2", "--kv-mib", "0"], 2, "--kv-mib: got 0, expected at least 1"),
        (
            ["--replicas", "2", "--kv-offload-folder", "/tmp"],
            2,
            "--kv-offload-folder: got a folder, expected",
        ),
        (["--replicas", str(10**20)], 2, f"--replicas: got {10**20}, expected"),
        (["--port", "70000"], 2, "--port: got 70000, expected 0 to 65535"),
        (["--host", "203.0.113.1"], 1, "--host 203.0.113.1 --port 8000: cannot listen there"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *arguments]) == code
    told, *hints = capsys.readouterr().err.splitlines()
    assert line in told
    assert len(hints) <= 1
    assert all(hint.startswith("hint: ") for hint in hints)


def test_ranks_of_torchrun_are_refused_before_they_listen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but one would otherwise blame the port."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert run(["serve", "--host", "203.0.113.1"]) == 2
    assert "got 2 ranks of torchrun, expected one process" in capsys.readouterr().err
