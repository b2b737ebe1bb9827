"""Sends many requests to `tts-decode serve`, a large part of them aborted, too large, or never finished.

    python -m benches.integrations.serve_soak --requests 10000

starts a server over a tiny random model, sends requests from another process, and fails unless each was
answered as it should be, every page is free at the end, no connection is open, and the server's process has
no more open files than after the first tenth of the requests, and has grown by no more than 16 MiB. What
grows has bounds: shapes of calls that operators remember (4,096 each), trees of searches, free memory that
malloc keeps.
For Linux with glibc.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
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
_GROWTH = 16 << 20  # bytes that the process may grow by behind the first tenth
# How requests end; all of these have to come up, and no others.
ENDS = ("200", "400", "429", "broken off", "half closed", "half a head", "half a body", "nothing sent")


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


def soaked(port: int, requests: int, seed: int) -> Counter[str]:
    """`soak` for another process."""
    return asyncio.run(soak(port, requests, seed=seed))


async def _one(port: int, rng: random.Random, held: list[asyncio.StreamWriter]) -> str:
    path, body, expected = _request(rng)
    data = json.dumps(body).encode()
    head = _HEAD.format(path=path, length=len(data)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    kind = rng.random()
    if kind < 0.15:
        sent = {
            "nothing sent": b"",
            "half a head": head[: rng.randrange(1, len(head) - 4)],
            "half a body": head + data[: rng.randrange(len(data))],
        }
        end = list(sent)[int(kind / 0.05)]
        writer.write(sent[end])
        held.append(writer)
        return end
    writer.write(head + data)
    try:
        await writer.drain()
        if (
            kind < 0.2
        ):  # a client that ends its sending side has left; what is refused at once may be answered
            writer.write_eof()
            await asyncio.wait_for(reader.read(), _SECONDS)
            return "half closed"
        if kind < 0.4:
            await asyncio.sleep(rng.random() * 0.05)
            if rng.random() < 0.5:
                await asyncio.wait_for(reader.read(rng.randrange(1, 2000)), _SECONDS)
            if rng.random() < 0.3:
                writer.transport.abort()
            return "broken off"
        status = await _answer(reader)
        return status if status in expected else f"{status} in place of {' or '.join(expected)}"
    except (ConnectionError, IndexError, asyncio.IncompleteReadError):
        return "broken off" if kind < 0.4 else "closed by the server"
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> str:
    """Reads a whole answer, and returns its status; of a stream with an error "error"."""
    status = (await asyncio.wait_for(reader.readline(), _SECONDS)).split()[1].decode()
    while line := (await asyncio.wait_for(reader.readline(), _SECONDS)).strip():
        if line.lower().startswith(b"content-length:"):
            await asyncio.wait_for(reader.readexactly(int(line.split(b":")[1]) + 2), _SECONDS)
            return status
    while (line := await asyncio.wait_for(reader.readline(), _SECONDS)) != b"data: [DONE]\n":
        if not line:
            raise ConnectionError
        if line.startswith(b'data: {"error"'):
            status = "error"
    return status


def _request(rng: random.Random) -> tuple[str, dict[str, Any], tuple[str, str]]:
    """Path and body, some of which ask for more than there is, and the statuses that are right."""
    length = rng.choice([1, 10, 60, 200, 700])  # of 512 positions
    words = " ".join(f"w{rng.randrange(8)}" for _ in range(length // 3 + 1))
    body: dict[str, Any] = {"max_tokens": rng.choice([1, 5, 20, 60, 10**6])}
    body |= rng.choice([{}, {"n": 3}, {"n": 1000}, {"stop": "a"}, {"logprobs": 2}, {"temperature": 0}])
    if rng.random() < 0.5:
        body["stream"] = True
    if rng.random() < 0.1:
        body = {"max_tokens": 20, "tts": {"strategy": "beam_search", "n": 4, "max_step_tokens": 5}}
    fits = length < 512 and body["max_tokens"] < 1000 and body.get("n", 1) < 1000
    expected = ("200" if fits else "400", "429")
    if rng.random() < 0.4:
        if "logprobs" in body:
            body["logprobs"] = True
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": words}]}, expected
    return "/v1/completions", body | {"prompt": words}, expected


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))
    import torch
    from serving import Served, make_chatty, until
    from tiny_models import tiny_model
    from tts_decode.serve.config import Limits

    from tts_kernels.checks import Footprint

    served = Served(make_chatty(tiny_model()), limits=Limits(idle_seconds=2.0, sequences=24))
    tenth = max(1, arguments.requests // 10)
    ends: Counter[str] = Counter()
    sizes: list[int] = []
    files: list[int] = []
    forms: list[int] = []  # shapes of calls that operators remember
    began = time.monotonic()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as clients:
        clients.submit(os.getpid).result()  # its process is there from now on, and so are its files
        for number in range(0, arguments.requests, tenth):
            count, seed = min(tenth, arguments.requests - number), arguments.seed + number
            ends += clients.submit(soaked, served.port, count, seed).result()
            served.assert_empties()
            until(lambda: served.connections == 0)
            sizes.append(_resident_bytes())
            files.append(len(os.listdir("/proc/self/fd")))
            forms.append(sum(type(found) is Footprint for found in gc.get_objects()))
            told = f"{sizes[-1] / 2**20:.1f} MiB, {files[-1]} open files, {forms[-1]} shapes"
            print(f"{ends.total()} requests, {told}", flush=True)
    seconds = time.monotonic() - began
    ctypes.CDLL(None).malloc_trim(0)
    trimmed = _resident_bytes()
    served.close()
    print(dict(ends))
    print(f"memory grew by {(sizes[-1] - sizes[0]) / 2**20:.1f} MiB since the first tenth; no page is left")
    if arguments.json is not None:
        about = {"threads": torch.get_num_threads(), "python": sys.version, "torch": torch.__version__}
        found = {
            "settings": {"requests": arguments.requests, "seed": arguments.seed},
            "seconds": round(seconds),
            "ends": ends,
            "resident_bytes": sizes,
            "resident_bytes_after_malloc_trim": trimmed,
            "shapes": forms,
            "open_files": files,
        }
        arguments.json.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")
    wrong = set(ends) ^ set(ENDS)
    if wrong or files[-1] > files[0] or sizes[-1] - sizes[0] > _GROWTH:
        sys.exit(f"memory or open files grew, or requests ended in other ways than expected: {wrong}")


def _resident_bytes() -> int:
    """Of this process, at present."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
