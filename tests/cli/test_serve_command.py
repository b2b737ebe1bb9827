"""`tts-decode serve`: from the command to an answer, and to its end by a signal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tiny_models import byte_tokenizer, tiny_model
from tts_decode.cli.app import run

COMMAND = [sys.executable, "-m", "tts_decode", "serve"]
KEY = "a-key-for-the-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "little"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_it_serves_until_a_signal_ends_it(folder: Path) -> None:
    command = [*COMMAND, "--model", str(folder), "--dtype", "float32", "--port", "0", "--kv-mib", "16"]
    environment = {"TTS_DECODE_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving little on (http://127\.0\.0\.1:\d+)/v1", line):
                break
        else:
            raise AssertionError("it does not serve")
        with httpx.Client(
            base_url=found[1], headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ) as client:
            for _ in range(300):
                try:
                    client.get("/health")
                    break
                except httpx.ConnectError:
                    continue
            answer = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 4, "model": "little"})
            assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "POST /v1/completions 200" in rest
    assert KEY not in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--api-keys", "/no/such/file"], 2, "cannot be read as a file of keys"),
        (["--max-tokens", "0"], 2, "max_tokens: got 0"),
        (["--scorer", "x"], 2, "expected NAME=READER:FOLDER"),
        (["--scorer", "x=nothing:folder"], 2, "expected one of"),
        (["--port", "70000"], 1, "cannot listen there"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *arguments]) == code
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
