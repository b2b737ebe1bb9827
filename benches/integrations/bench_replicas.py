"""One replica behind Ray Serve beside the plain server: tokens a second and seconds of a short request.

    python -m benches.integrations.bench_replicas --json build/replicas.json

Both servers, `tts-decode serve` and `tts-decode serve --ray`, run the default model with the same threads.
They take turns; while one answers, the other has no request. Each sequence has a prompt of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from tts_decode.cli.machine import device_name

_COMMANDS = {"one server": [], "one replica": ["--ray"]}
_START_SECONDS = 300.0


@contextmanager
def server(options: list[str], port: int) -> Iterator[str]:
    """The address of a server that answers."""
    command = [sys.executable, "-m", "tts_decode", "serve", "--port", str(port), *options]
    process = subprocess.Popen(command, env=os.environ | {"GOMP_SPINCOUNT": "1000"})
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server with {options} does not start")
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


async def seconds_of(address: str, prompts: list[str], tokens: int, *, stream: bool) -> float:
    """Wall time of concurrent completions, one for each prompt."""

    async def one(http: httpx.AsyncClient, prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": tokens, "stream": stream}
        async with http.stream("POST", f"{address}/v1/completions", json=body, timeout=300) as answer:
            answer.raise_for_status()
            await answer.aread()

    async with httpx.AsyncClient() as http:
        began = time.perf_counter()
        await asyncio.gather(*(one(http, prompt) for prompt in prompts))
        return time.perf_counter() - began


def measure(addresses: dict[str, str], rounds: int, clients: int, tokens: int) -> dict[str, Any]:
    """Medians, and the ratio of the replica to the server in the same round."""
    short: dict[str, list[float]] = {name: [] for name in addresses}
    batch: dict[str, list[float]] = {name: [] for name in addresses}
    for number in range(-1, rounds):  # the first round warms up
        names = list(addresses) if number % 2 else list(addresses)[::-1]
        for name in names:
            alone = [f"Round {number}, {name}, request {i}" for i in range(5)]
            times = [asyncio.run(seconds_of(addresses[name], [p], 1, stream=False)) for p in alone]
            prompts = [f"Round {number}, {name}, client {i}: count to ten" for i in range(clients)]
            together = asyncio.run(seconds_of(addresses[name], prompts, tokens, stream=True))
            if number >= 0:
                short[name].append(statistics.median(times))
                batch[name].append(together)
    plain, replica = addresses
    return {
        "clients": clients,
        "tokens": tokens,
        "rounds": rounds,
        "seconds of a request of one token": {
            name: round(statistics.median(s), 4) for name, s in short.items()
        },
        "seconds of all streams": {name: [round(s, 3) for s in found] for name, found in batch.items()},
        "throughput of a replica over a server's": [
            round(a / b, 3) for a, b in zip(batch[plain], batch[replica], strict=True)
        ],
        "machine": device_name("cpu"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("rounds", 5), ("clients", 16), ("tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(server(options, 8123 + i))
            for i, (name, options) in enumerate(_COMMANDS.items())
        }
        found = measure(addresses, given.rounds, given.clients, given.tokens)
    print(json.dumps(found, indent=2))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
