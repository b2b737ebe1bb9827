"""One rank of the tests of device meshes: `mesh_worker.py RANK SIZE FOLDER CASE...`.

Each case is a function of this file. Rank 0 writes the cases' results to FOLDER/results.json; a failing rank
writes its error to FOLDER/error-RANK.txt and exits with code 3.
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from tiny_models import byte_tokenizer, tiny_model
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from tts_decode import Budget, SamplingParams, TreeDecoder
from tts_decode.decoding.offload import KVOffload
from tts_decode.errors import MeshError, TTSError
from tts_decode.model.loading import load_model
from tts_decode.model.sparse import SparseConfig
from tts_decode.rewards import mean_probability
from tts_decode.search import beam_search, best_of_n, ets, mcts, rebase

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 128}
PROMPT = "The quick brown fox jumps over the lazy dog"
Found = dict[str, Any]


def build(family: str = "llama", **options: Any) -> Any:
    return tiny_model(family, **(HEADS | options))


def decoder_of(model: Any, mesh: DeviceMesh | None, **options: Any) -> TreeDecoder:
    if mesh is not None:
        options = {"device_mesh": mesh, "mesh_timeout": 8.0} | options
    made = TreeDecoder(model, byte_tokenizer(), **({"kv_bytes": 1 << 23} | options))
    made.eos_token_ids = frozenset()
    return made


def branches_of(decoder: TreeDecoder, tokens: int = 36) -> Found:
    """Tokens and log-probabilities of forks, ragged ones, a truncation and a prompt that is shared."""

    async def grow() -> Found:
        root = await decoder.root(PROMPT, SamplingParams(seed=3, temperature=0.9))
        kids = root.fork(4)
        await asyncio.gather(*(kid.step(max_tokens=tokens // 2 + i) for i, kid in enumerate(kids)))
        kids[1].truncate(len(kids[1].tokens) - 5)
        await asyncio.gather(*(kid.step(max_tokens=tokens // 2) for kid in kids))
        second = await decoder.root(PROMPT + "s today", SamplingParams(seed=4))
        logprobs = await second.next_logprobs()
        return {
            "tokens": [kid.tokens for kid in kids],
            "logprobs": [[p for step in kid.steps for p in step.logprobs] for kid in kids],
            "next": logprobs.tolist(),
        }

    return decoder.run(grow())


def led(decoder: TreeDecoder, search: Callable[[TreeDecoder], Found]) -> Found:
    """What the search finds on the rank that leads; the others follow."""
    with decoder:
        if decoder.leads:
            return search(decoder)
        decoder.follow()
        return {}


# -- cases


def float32(mesh: DeviceMesh | None) -> Found:
    return led(decoder_of(build(), mesh), branches_of)


def general(mesh: DeviceMesh | None) -> Found:
    return led(decoder_of(build(), mesh, pack_weights=mesh is None), branches_of)


def bfloat16(mesh: DeviceMesh | None) -> Found:
    return led(decoder_of(build(dtype=torch.bfloat16), mesh), branches_of)


def gemma2(mesh: DeviceMesh | None) -> Found:
    return led(decoder_of(build("gemma2"), mesh), branches_of)


def nemotron(mesh: DeviceMesh | None) -> Found:
    return led(decoder_of(build("nemotron"), mesh), branches_of)


def qwen3(mesh: DeviceMesh | None) -> Found:
    return led(decoder_of(tiny_model("qwen3"), mesh), branches_of)


def tied(mesh: DeviceMesh | None) -> Found:
    return led(decoder_of(build(tie_word_embeddings=True), mesh), branches_of)


def wide(mesh: DeviceMesh | None) -> Found:
    shape = {"hidden_size": 512, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    return led(decoder_of(build(num_hidden_layers=2, intermediate_size=256, **shape), mesh), branches_of)


def default_model(mesh: DeviceMesh | None) -> Found:
    model, tokenizer = load_model(dtype=torch.float32, pack_weights=True)
    options = {} if mesh is None else {"device_mesh": mesh, "mesh_timeout": 60.0}
    made = TreeDecoder(model, tokenizer, kv_bytes=1 << 27, **options)
    return led(made, lambda decoder: branches_of(decoder, 12))


def quantised(mesh: DeviceMesh | None, weights: str) -> Found:
    folder = os.environ["TINY_CHECKPOINT"]
    model, _ = load_model(folder, weights=weights, pack_weights=True)
    return led(decoder_of(model, mesh), branches_of)


def int8(mesh: DeviceMesh | None) -> Found:
    return quantised(mesh, "int8")


def int4(mesh: DeviceMesh | None) -> Found:
    return quantised(mesh, "int4")


def strategies(mesh: DeviceMesh | None) -> Found:
    def search(decoder: TreeDecoder) -> Found:
        found = {}
        sampling = SamplingParams(seed=7, max_tokens=40, max_step_tokens=8)
        common: dict[str, Any] = {"scorer": mean_probability()}
        for name, strategy, options in (
            ("best_of_n", best_of_n, {"n": 4}),
            ("beam_search", beam_search, {"n": 4, "beam_width": 2, "max_steps": 4}),
            ("rebase", rebase, {"n": 4, "max_steps": 4}),
            ("ets", ets, {"n": 4, "max_steps": 4}),
            ("mcts", mcts, {"num_simulations": 4, "num_children": 2, "max_steps": 3}),
        ):
            budget = Budget(max_tokens=400)

            root = decoder.run(decoder.root(PROMPT, sampling, budget))
            result = decoder.run(strategy(root, **common, **options))
            found[name] = [result.answer, budget.tokens_used, round(budget.cost_used)]
        return found

    return led(decoder_of(build(), mesh), search)


def refusals(mesh: DeviceMesh) -> Found:
    """What each of these constructions is refused with, on every rank."""
    model = build()
    folder = KVOffload(1 << 20)
    tried: dict[str, Callable[[], object]] = {
        "kv_offload": lambda: decoder_of(model, mesh, kv_offload=folder),
        "sparse": lambda: decoder_of(model, mesh, sparse=SparseConfig(budget=4)),
        "track_mass": lambda: decoder_of(model, mesh, track_mass=True),
        "kv_dtype": lambda: decoder_of(model, mesh, kv_dtype=torch.int8),
        "kv heads": lambda: decoder_of(build(num_key_value_heads=1), mesh),
        "width": lambda: decoder_of(build(intermediate_size=80), mesh),
        "mixture": lambda: decoder_of(tiny_model("mixtral"), mesh),
        "fused": lambda: decoder_of(tiny_model("phi3"), mesh),
        "no plan": lambda: decoder_of(tiny_model("mpt", n_heads=4, d_model=128), mesh),
        "timeout": lambda: decoder_of(model, mesh, mesh_timeout=0),
    }
    found = {}
    for name, make in tried.items():
        try:
            make()
            found[name] = "served"
        except (TTSError, ValueError, TypeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def other_weights(mesh: DeviceMesh) -> Found:
    decoder_of(build(seed=int(mesh.get_local_rank() == 1)), mesh)
    return {}


def own_failure(mesh: DeviceMesh) -> Found:
    """A rank on which the decoder cannot be made, for reasons of its own."""
    decoder_of(build(), mesh, track_mass=mesh.get_local_rank() == 1)
    return {}


def drifted(mesh: DeviceMesh) -> Found:
    """The embeddings of rank 1 change behind everybody's back."""
    decoder = decoder_of(build(), mesh)
    if not decoder.leads:
        decoder.model.get_input_embeddings().weight.detach().numpy()[:, 3] += 0.01
    return led(decoder, lambda decoder: branches_of(decoder, 80))  # more steps than lie between two checks


def trained(mesh: DeviceMesh) -> Found:
    decoder = decoder_of(build(), mesh)
    with torch.no_grad():
        decoder.model.get_input_embeddings().weight[5] += 1
    return led(decoder, branches_of)


def struck(decoder: TreeDecoder, blow: Callable[[], object]) -> TreeDecoder:
    """The decoder, whose 20th step on rank 1 begins with the blow."""
    if not decoder.leads:
        run, steps = decoder.runtime.engine.forward, itertools.count(1)

        def forward(*args: Any) -> Any:
            if next(steps) == 20:
                blow()
            return run(*args)

        decoder.runtime.engine.forward = forward  # type: ignore[method-assign]
    return decoder


def killed(mesh: DeviceMesh) -> Found:
    return led(struck(decoder_of(build(), mesh), lambda: os.kill(os.getpid(), signal.SIGKILL)), branches_of)


def hanging(mesh: DeviceMesh) -> Found:
    """Rank 1 is silent for longer than rank 0 waits."""
    decoder = decoder_of(build(), mesh, mesh_timeout=4.0)
    return led(struck(decoder, lambda: time.sleep(12)), branches_of)


def idle(mesh: DeviceMesh) -> Found:
    """The leader does something else for longer than the others wait for it."""

    def search(decoder: TreeDecoder) -> Found:
        branches_of(decoder)
        time.sleep(5)
        return branches_of(decoder)

    return led(decoder_of(build(), mesh, mesh_timeout=2.0), search)


def main() -> None:
    faulthandler.dump_traceback_later(150, exit=True)
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    found = {}
    try:
        for case in sys.argv[4:]:
            found[case] = globals()[case](mesh)
    except (MeshError, TTSError, ValueError) as error:
        (folder / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(3) from error
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
