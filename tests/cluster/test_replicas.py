"""`tts-decode serve --replicas`: two replicas on a cluster of two nodes answer as one server does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_commands import last_error
from cluster_work import ServedOfTurn
from needed import missing
from serving import CHAT_TEMPLATE, Served
from tiny_models import byte_tokenizer, tiny_model
from tts_decode.cli.app import run
from tts_decode.cli.groups import ModelOptions
from tts_decode.cli.served_model import ServedModel
from tts_decode.errors import ClusterError
from tts_decode.replicas.run import Replicas, serving
from tts_decode.serve.config import Limits

from benches.local_cluster import LocalCluster

KEY = "a-key-for-the-test"
SECONDS = 400.0  # a machine of two busy cores starts ten processes
LONG = {"prompt": "x", "n": 32, "max_tokens": 900, "stream": True, "logit_bias": {"256": -100}}


def until(condition: Callable[[], Any]) -> None:
    """Waits for what other processes do, and leaves them the cores for it."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.2)


@dataclass
class Server:
    """The command, and a client of it. folder: of its model."""

    process: subprocess.Popen[str]
    http: httpx.Client
    folder: Path

    def complete(self, prompt: str, **body: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4, **body})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def sampled(self) -> dict[str, float]:
        """Tokens that each replica sampled."""
        return self._told("generated_tokens_total")

    def running(self) -> dict[str, float]:
        """Sequences that each replica has."""
        return self._told("running_sequences")

    def _told(self, name: str) -> dict[str, float]:
        lines = re.findall(
            rf'^tts_decode_{name}\{{replica="(\d)"\}} (\S+)', self.http.get("/metrics").text, re.M
        )
        return {number: float(value) for number, value in lines}

    def serving(self) -> int:
        answer = self.http.get("/health")
        return int(answer.json().get("serving", 0))


@pytest.fixture(scope="module")
def server(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of two replicas, which serve."""
    if find_spec("prometheus_client") is None or find_spec("aiohttp") is None:
        missing("needs the packages of the extras: pip install '.[serve,ray]'")
    folder = tmp_path_factory.mktemp("model") / "little"
    tiny_model().save_pretrained(folder)
    byte_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    arguments = ["--model", str(folder), "--dtype", "float32", "--port", "0", "--kv-mib", "16"]
    command = [sys.executable, "-m", "tts_decode", "serve", *arguments]
    command += ["--replicas", "2", "--ray", cluster.address, "--max-body-kib", "64", "--grace", "1"]
    environment = os.environ | {"TTS_DECODE_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    told = []
    assert process.stderr is not None
    for line in process.stderr:
        told.append(line)
        if found := re.search(r"serving little on (http://127\.0\.0\.1:\d+)/v1", line):
            break
    else:
        raise AssertionError("".join(told))
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=found[1], headers=headers, timeout=SECONDS) as http:
        yield Server(process, http, folder)
    process.kill()
    process.communicate()


def replica_processes() -> dict[str, int]:
    """Processes of replicas by the names of their deployments."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            name = (folder / "cmdline").read_bytes()
            if match := re.match(rb"ray::\S*tts-decode[:#](replica-\d)", name):
                found[match[1].decode()] = int(folder.name)
    return found


def serve_processes() -> list[bytes]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_bytes())
    return [name for name in found if name.startswith((b"ray::Serve", b"ray::SERVE", b"ray::Proxy"))]


def test_texts_are_those_of_one_server(server: Server) -> None:
    options = ModelOptions(str(server.folder), dtype="float32", kv_mib=16)
    one = Served(ServedModel(options, "little", (), (), Limits(), True)()[0])
    try:
        for body in (
            {"prompt": "The quick brown", "n": 3, "seed": 5, "max_tokens": 12},
            {"prompt": ["one", "two"], "temperature": 0, "max_tokens": 8},
        ):
            assert server.complete(**body)["choices"] == one.complete(**body)["choices"]
        chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "seed": 1}
        answer = server.http.post("/v1/chat/completions", json=chat)
        assert answer.json()["choices"] == one.chat(**chat)["choices"]
    finally:
        one.close()


def test_prompts_of_one_beginning_go_to_one_replica_and_others_spread(server: Server) -> None:
    before = server.sampled()
    cached = []
    for number in range(4):
        usage = server.complete("s" * 300 + str(number))["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    after = server.sampled()
    assert sorted(after[name] - before[name] for name in after) == [0, 16]
    assert cached[0] == 0
    assert min(cached[1:]) >= 272  # 300 in whole pages of 16, less the one that is always computed
    for letter in "abcd":
        server.complete(letter * 300)
    last = server.sampled()
    assert sorted(last[name] - after[name] for name in after) == [8, 8]


def test_a_stream_comes_in_parts_and_ends(server: Server) -> None:
    body = {"prompt": "x", "n": 2, "max_tokens": 40, "stream": True, "seed": 3, "logit_bias": {"256": -100}}
    with server.http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        parts = [part for part in answer.iter_raw()]
    *events, done, rest = b"".join(parts).decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert len(parts) > 5
    texts = ["", ""]
    for event in events:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
    whole = server.complete(**{**body, "stream": False})["choices"]
    assert texts == [choice["text"] for choice in whole]


def test_a_client_that_leaves_ends_its_work(server: Server) -> None:
    before = sum(server.sampled().values())
    with server.http.stream("POST", "/v1/completions", json=LONG) as answer:
        next(answer.iter_raw())
    until(lambda: set(server.running().values()) == {0})
    assert sum(server.sampled().values()) - before < LONG["n"] * LONG["max_tokens"]


def test_refusals_are_those_of_the_protocol(server: Server) -> None:
    post = server.http.post
    wrong = {"Authorization": "Bearer wrong"}
    answers = {
        "invalid_api_key": post("/v1/completions", json={"prompt": "x"}, headers=wrong),
        "invalid_json": post("/v1/completions", content=b"{", headers={"Content-Type": "application/json"}),
        "body_too_large": post("/v1/completions", json={"prompt": "x" * 70_000}),
        "not_served": server.http.get("/v2"),
        "tree_not_found": server.http.get("/v1/tts/trees/none"),
        "model_not_found": post("/v1/completions", json={"prompt": "x", "model": "other"}),
    }
    assert {code: answer.json()["error"]["code"] for code, answer in answers.items()} == {
        code: code for code in answers
    }
    assert server.http.get("/metrics", headers=wrong).status_code == 401
    assert httpx.get(f"{server.http.base_url}/health", timeout=SECONDS).status_code == 200


def test_a_search_and_its_tree(server: Server) -> None:
    body = {"prompt": "x", "max_tokens": 8, "tts": {"strategy": "best_of_n", "n": 2}}
    tree = server.http.post("/v1/completions", json=body).json()["tts"]["tree"]
    assert server.http.get(tree).status_code == 200


def test_a_replica_that_dies_comes_back(server: Server) -> None:
    """What it was asked ends with an error, the other one answers meanwhile."""
    before = replica_processes()
    assert sorted(before) == ["replica-0", "replica-1"]
    with server.http.stream("POST", "/v1/completions", json=LONG) as answer:
        chunks = answer.iter_raw()
        received = next(chunks)
        number = next(number for number, count in server.running().items() if count == LONG["n"])
        os.kill(before[f"replica-{number}"], signal.SIGKILL)
        received += b"".join(chunks)
    *_, event, done, _ = received.split(b"\n\n")
    assert done == b"data: [DONE]"
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "unavailable"
    server.complete("next")
    until(lambda: server.serving() == 2)
    after = replica_processes()
    assert after.keys() == before.keys()
    assert after[f"replica-{number}"] != before[f"replica-{number}"]
    for letter in "efgh":
        server.complete(letter * 300)
    assert server.sampled()[number] > 0


def test_ray_serve_that_runs_is_not_disturbed(
    server: Server, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "-m", str(server.folder), "--port", "0", "--ray", cluster.address]
    assert run(arguments) == 1
    assert "Ray Serve runs already; end it by `serve shutdown`" in last_error(capsys)
    assert server.serving() == 2


def test_sigterm_ends_it_and_its_requests(server: Server) -> None:
    """The last test of this server."""
    with server.http.stream("POST", "/v1/completions", json=LONG) as answer:
        chunks = answer.iter_raw()
        received = next(chunks)
        server.process.send_signal(signal.SIGTERM)
        received += b"".join(chunks)
    *_, event, done, _ = received.split(b"\n\n")
    assert done == b"data: [DONE]"
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "the server is shutting down"
    _, told = server.process.communicate(timeout=SECONDS)
    assert server.process.returncode == 143
    assert "Traceback" not in told
    assert KEY not in told
    until(lambda: not serve_processes())


def test_a_model_that_does_not_load(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "-m", str(tmp_path / "none"), "--port", "0", "--ray", cluster.address]
    assert run(arguments) == 1
    assert re.search(r"--replicas: they do not start: .*none", last_error(capsys))
    until(lambda: not serve_processes())


def test_replicas_of_different_models_do_not_start(cluster: LocalCluster, tmp_path: Path) -> None:
    replicas = Replicas(ServedOfTurn(tmp_path), 2, "127.0.0.1", 0, address=cluster.address, cpus=1)
    told = r"^replicas: replica [01] is not like .* put the same model"
    with pytest.raises(ClusterError, match=told), serving(replicas, grace=0):
        raise AssertionError("they serve")
    until(lambda: not serve_processes())


def test_more_replicas_than_there_is_room_for(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--port", "0", "--replicas", "3", "--ray", cluster.address]) == 1
    assert "--replicas: got 3 of 1 core, expected at most what the cluster has" in last_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "0"], "--replicas: got 0, expected at least 1"),
        (
            ["--replicas", "2", "--device", "cuda:1"],
            "--device: got 'cuda:1' beside replicas, expected it without",
        ),
        (["--ray-cpus", "2"], "--ray-cpus: got 2 without --replicas or --ray, of which it says something"),
    ],
)
def test_wrong_options_of_replicas_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--port", "0", *arguments]) == 2
    assert message in last_error(capsys)


@pytest.mark.parametrize("module", ["ray", "ray.serve"])
def test_ray_is_missing_for_replicas(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if module == "ray.serve" and find_spec("ray") is None:
        missing("needs Ray, without Ray Serve")
    monkeypatch.setitem(sys.modules, module, None)
    assert run(["serve", "--port", "0", "--replicas", "2"]) == 1
    told = last_error(capsys)
    assert f"{module}: " in told
    assert "not installed; run: pip install 'tts-kernels[ray]'" in told
