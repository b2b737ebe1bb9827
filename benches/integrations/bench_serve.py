"""Compares tokens/s of clients of `tts-decode serve` with the same decoder in process, alternately.

    python -m benches.integrations.bench_serve --json build/serve.json

Clients run in a separate process, whose CPU time is reported: on few cores, the server lacks it. Every
sequence has its own prompt, and a bias prevents end-of-sequence tokens, in process too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn
from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.serve.config import Limits, ServerConfig
from tts_decode.serve.run import http_config


def prompt_of(round_: int, client: int) -> str:
    return f"Round {round_}, question {client}: what is {client} times {client + round_}, and why?"


def in_process(decoder: TreeDecoder, round_: int, clients: int, tokens: int) -> float:
    """Tokens a second."""
    bias = dict.fromkeys(decoder.eos_token_ids, -100.0)  # as the clients: the protocol has no other way

    async def one(client: int) -> None:
        params = SamplingParams(seed=client, max_tokens=tokens, max_step_tokens=tokens, logit_bias=bias)
        root = await decoder.root(prompt_of(round_, client), params)
        await root.step()
        root.release()

    async def all_() -> float:
        began = time.perf_counter()
        await gather(one(client) for client in range(clients))
        return clients * tokens / (time.perf_counter() - began)

    return decoder.run(all_())


def client_process(port: int, work: Any, results: Any) -> None:
    """Takes (round, clients, tokens, end ids, stream) and answers (tokens a second, own CPU seconds)."""

    async def one(http: httpx.AsyncClient, body: dict[str, Any]) -> int:
        if not body["stream"]:
            answer = await http.post("/v1/completions", json=body)
            return int(answer.json()["usage"]["completion_tokens"])
        count = 0
        options = {"stream_options": {"include_usage": True}}
        async with http.stream("POST", "/v1/completions", json=body | options) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    usage = json.loads(line[6:]).get("usage")
                    count = usage["completion_tokens"] if usage else count
        return count

    async def all_(round_: int, clients: int, tokens: int, ends: Sequence[int], stream: bool) -> Any:
        bias = {str(token): -100 for token in ends}
        bodies = [
            {
                "prompt": prompt_of(round_, c),
                "seed": c,
                "max_tokens": tokens,
                "logit_bias": bias,
                "stream": stream,
            }
            for c in range(clients)
        ]
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits) as http:
            began, cpu = time.perf_counter(), time.process_time()
            counts = await asyncio.gather(*(one(http, body) for body in bodies))
            return sum(counts) / (time.perf_counter() - began), time.process_time() - cpu

    while (asked := work.get()) is not None:
        results.put(asyncio.run(all_(*asked)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    decoder = TreeDecoder.from_pretrained(dtype=arguments.dtype)
    config = http_config(decoder, ServerConfig("bench", limits=Limits(sequences=4 * arguments.clients)))
    config.port = 0
    server = uvicorn.Server(config)
    spawn = multiprocessing.get_context("spawn")
    work, results = spawn.Queue(), spawn.Queue()
    rows: dict[str, list[float]] = {
        "in process": [],
        "whole": [],
        "stream": [],
        "whole CPU": [],
        "stream CPU": [],
    }
    ends = sorted(decoder.eos_token_ids)
    process: Any = None
    for number in range(-1, arguments.rounds):  # the first one warms up
        found = in_process(decoder, 3 * number, arguments.clients, arguments.tokens)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        if process is None or not process.is_alive():
            port = server.servers[0].sockets[0].getsockname()[1]
            process = spawn.Process(target=client_process, args=(port, work, results), daemon=True)
            process.start()
        measured = {"in process": found}
        for offset, name in enumerate(("whole", "stream"), 1):
            work.put((3 * number + offset, arguments.clients, arguments.tokens, ends, name == "stream"))
            measured[name], measured[f"{name} CPU"] = results.get()
        work.put(None)
        process.join()
        server.should_exit = True
        thread.join()
        server = uvicorn.Server(config)
        if number >= 0:
            for name, value in measured.items():
                rows[name].append(value)
            print({name: round(value, 2) for name, value in measured.items()}, flush=True)
    medians = {name: statistics.median(values) for name, values in rows.items()}
    for name in ("whole", "stream"):
        print(f"{name}: {medians[name] / medians['in process']:.2f} of {medians['in process']:.0f} tokens/s")
    if arguments.json is not None:
        about = {"threads": torch.get_num_threads(), "python": sys.version, "torch": torch.__version__}
        settings = {name: str(value) for name, value in vars(arguments).items()}
        arguments.json.write_text(json.dumps(about | {"settings": settings, "rounds": rows}, indent=1))


if __name__ == "__main__":
    main()
