"""Many requests against `tts-decode serve`, a good part of them broken off, too large, or never finished.

    python -m benches.integrations.serve_soak --requests 10000

starts a server over a tiny random model, and fails unless every page is free at the end, no connection is
open, and the process has neither grown nor more open files than after the first tenth of the requests. For
Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

_HEAD = "\r\n".join(
    [
        "POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Content-Length: {length}",
        "",
        "",
    ]
)
_SECONDS = 60.0


async def soak(port: int, requests: int, *, seed: int = 0, workers: int = 16) -> Counter[str]:
    """Sends the requests, some at a time, and returns how they ended: a status or a kind of break."""
    rng = random.Random(seed)
    numbers = iter(range(requests))
    ends: Counter[str] = Counter()
    held: list[asyncio.StreamWriter] = []  # half-open connections

    async def work() -> None:
        for number in numbers:
            ends[await _one(port, random.Random(f"{seed} {number}"), held)] += 1
            if len(held) > 50:
                held.pop(rng.randrange(len(held))).close()

    await asyncio.gather(*(work() for _ in range(workers)))
    for writer in held:
        writer.close()
    return ends


async def _one(port: int, rng: random.Random, held: list[asyncio.StreamWriter]) -> str:
    path, body = _request(rng)
    data = json.dumps(body).encode()
    head = _HEAD.format(path=path, length=len(data)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    kind = rng.random()
    if kind < 0.06:  # the head never ends
        writer.write(head[: rng.randrange(1, len(head) - 4)])
        held.append(writer)
        return "half a head"
    if kind < 0.12:  # the body never ends
        writer.write(head + data[: rng.randrange(len(data))])
        held.append(writer)
        return "half a body"
    writer.write(head + data)
    try:
        await writer.drain()
        if kind < 0.4:
            await asyncio.sleep(rng.random() * 0.05)
            if rng.random() < 0.5:
                await asyncio.wait_for(reader.read(rng.randrange(1, 2000)), _SECONDS)
            if rng.random() < 0.3:
                writer.transport.abort()
            return "broken off"
        status = (await asyncio.wait_for(reader.readline(), _SECONDS)).split()[1].decode()
        while line := (await asyncio.wait_for(reader.readline(), _SECONDS)).strip():
            if line.lower().startswith(b"content-length:"):
                await asyncio.wait_for(reader.readexactly(int(line.split(b":")[1]) + 2), _SECONDS)
                return status
        while await asyncio.wait_for(reader.readline(), _SECONDS) != b"data: [DONE]\n":
            pass
        return status
    except (ConnectionError, IndexError, asyncio.IncompleteReadError):
        return "closed"
    finally:
        writer.close()


def _request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Path and body; some ask for more than there is."""
    length = rng.choice([1, 10, 60, 200, 700])  # of 512 positions
    words = " ".join(f"w{rng.randrange(8)}" for _ in range(length // 3 + 1))
    body: dict[str, Any] = {"max_tokens": rng.choice([1, 5, 20, 60, 10**6])}
    body |= rng.choice([{}, {"n": 3}, {"n": 1000}, {"stop": "a"}, {"logprobs": 2}, {"temperature": 0}])
    if rng.random() < 0.5:
        body["stream"] = True
    if rng.random() < 0.1:
        body = {"max_tokens": 20, "tts": {"strategy": "beam_search", "n": 4, "max_step_tokens": 5}}
    if rng.random() < 0.4:
        if "logprobs" in body:
            body["logprobs"] = True
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": words}]}
    return "/v1/completions", body | {"prompt": words}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))
    from serving import Served, make_chatty, until
    from tiny_models import tiny_model
    from tts_decode.serve.config import Limits

    served = Served(make_chatty(tiny_model()), limits=Limits(idle_seconds=2.0, sequences=64))
    tenth = max(1, arguments.requests // 10)
    ends: Counter[str] = Counter()
    sizes: list[int] = []
    files: list[int] = []
    for number in range(0, arguments.requests, tenth):
        seed = arguments.seed + number
        ends += asyncio.run(soak(served.port, min(tenth, arguments.requests - number), seed=seed))
        served.assert_empties()
        until(lambda: served.connections == 0)
        sizes.append(_resident_bytes())
        files.append(len(os.listdir("/proc/self/fd")))
        print(f"{ends.total()} requests, {sizes[-1] >> 20} MiB, {files[-1]} open files", flush=True)
    served.close()
    print(dict(ends))
    grown = (sizes[-1] - sizes[0]) >> 20
    print(f"memory grew by {grown} MiB since the first tenth; no page is left, and no connection")
    if grown > 32 or files[-1] > files[0]:
        sys.exit("memory or the number of open files grew")


def _resident_bytes() -> int:
    """Of this process, at present."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
