"""The server of vLLM as it starts by default: our attention computes, tokens are those of transformers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from needed import needs
from tiny_models import byte_tokenizer, greedy, tiny_model

needs("vllm")

import httpx

PROMPTS = [list(range(40)), [*range(32), 5, 7]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_completions_of_the_server(tmp_path: Path) -> None:
    """Its engine is an AsyncLLM in processes of its own."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    port, log = free_port(), tmp_path / "log"
    command: list[str | Path] = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", tmp_path / "model", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(2**24)]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            wait_for(http, server, log)
            body = {"prompt": PROMPTS, "n": 3, "top_k": 1, "max_tokens": 12, "return_token_ids": True}
            answer = http.post("/v1/completions", json=body | {"ignore_eos": True}).json()
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS for _ in range(3)]  # they end at EOS
    got = [choice["token_ids"] for choice in answer["choices"]]
    assert [tokens[: len(own)] for tokens, own in zip(got, expected, strict=True)] == expected
    assert "tts_kernels computes the attention of this engine, in float32" in log.read_text()


def wait_for(http: httpx.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if http.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
