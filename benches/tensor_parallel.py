"""Compares a model on two ranks of one thread with one process of two threads; counts the bytes sent.

python -m benches.tensor_parallel [--layers 2] [--branches 32] [--prompt 4096] [--json FILE]

The model has 32 query and 8 KV heads of 128 channels, an MLP of 11,264 and random bfloat16 weights. The two
take turns step by step: while one runs, the processes of the other wait for a message.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM
from tts_decode import SamplingParams, TreeDecoder

from .tiny_decoder import byte_tokenizer

RANKS = 2


def model_of(layers: int) -> Any:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_264,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    block = (torch.randn(1 << 20) * 0.02).bfloat16()
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data.fill_(1)
            continue
        flat = weight.data.view(-1)  # the speed of a step does not depend on the numbers
        for begin in range(0, len(flat), len(block)):
            part = flat[begin : begin + len(block)]
            part.copy_(block[: len(part)])
    inverse = 1.0 / 10_000 ** (torch.arange(0, 128, 2).float() / 128)
    for buffer in model.buffers():
        buffer.data.copy_(inverse)
    return model.eval(), tokenizer


def loopback_bytes() -> int:
    """Sent over this machine's own interface since it started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def serve(decoder: TreeDecoder, asked: Connection, branches: int, prompt: int) -> None:
    """Answers each request with the seconds of a step of all branches, the rank's bytes and those of `lo`."""

    async def timed(kids: list[Any]) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(kid.step(max_step_tokens=1) for kid in kids))
        return time.perf_counter() - started

    tokens = [place * 7919 % 256 for place in range(prompt)]
    decoder.eos_token_ids = frozenset()
    root = decoder.run(decoder.root(tokens, SamplingParams(seed=1, max_tokens=1 << 10)))
    kids = root.fork(branches)
    decoder.run(timed(kids))
    ranks = getattr(decoder.runtime.engine, "ranks", None)
    asked.send("ready")
    while asked.recv():
        before, sent = loopback_bytes(), 0 if ranks is None else ranks.sent
        seconds = decoder.run(timed(kids))
        asked.send((seconds, 0 if ranks is None else ranks.sent - sent, loopback_bytes() - before))


def rank_main(rank: int, folder: str, asked: Connection | None, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    model, tokenizer = model_of(args.layers)
    mesh = init_device_mesh("cpu", (RANKS,))
    with TreeDecoder(
        model, tokenizer, kv_bytes=1 << 29, check=False, device_mesh=mesh, mesh_timeout=300
    ) as decoder:
        if asked is None:
            decoder.follow()
        else:
            serve(decoder, asked, args.branches, args.prompt)


def whole_main(asked: Connection, args: argparse.Namespace) -> None:
    torch.set_num_threads(RANKS)
    decoder = TreeDecoder(*model_of(args.layers), kv_bytes=1 << 30, check=False)
    serve(decoder, asked, args.branches, args.prompt)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = mp.get_context("spawn")
    (split, split_end), (whole, whole_end) = context.Pipe(), context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=rank_main, args=(0, folder, split_end, args)),
            context.Process(target=rank_main, args=(1, folder, None, args)),
            context.Process(target=whole_main, args=(whole_end, args)),
        ]
        for process in processes:
            process.start()
        for line in (split, whole):
            line.recv()
        rows: dict[str, list[Any]] = {"split": [], "whole": []}
        for _ in range(args.repeats):
            for name, line in (("split", split), ("whole", whole)):
                line.send(True)
                rows[name].append(line.recv())
        for line in (split, whole):
            line.send(False)
        for process in processes:
            process.join()
    seconds = {name: statistics.median(row[0] for row in found) for name, found in rows.items()}
    hidden, size = 4096, 4
    theory = 2 * args.layers * args.branches * hidden * size * 2 * (RANKS - 1) // RANKS
    return {
        "layers": args.layers,
        "branches": args.branches,
        "prompt": args.prompt,
        "repeats": args.repeats,
        "one process of two threads, ms": round(1e3 * seconds["whole"], 1),
        "two ranks of one thread, ms": round(1e3 * seconds["split"], 1),
        "ratio": round(seconds["whole"] / seconds["split"], 3),
        "bytes of a step": {
            "sums of a rank, by theory": theory,
            "sums of the leader, counted": statistics.median(row[1] for row in rows["split"]),
            "all of both ranks on the loopback interface": statistics.median(row[2] for row in rows["split"]),
            "logits to the leader, by theory": args.branches * 16_000 * size,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("layers", 2), ("branches", 32), ("prompt", 4096), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = measure(args)
    text = json.dumps(found, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
