"""Measures tree steps, to compare with the plan's law, and the host's part of a step, on this machine.

Times are CPU seconds of one thread, which other work on the machine affects less than wall-clock time.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tts_decode import SamplingParams, TreeBranch, TreeDecoder, gather
from tts_decode.bench.machine import Peaks
from tts_decode.bench.timing import Quartiles, quartiles
from tts_decode.cost import Machine, ModelShape, search_cost
from tts_decode.model.loading import load_model
from tts_decode.model.shape import shape_of_config

from benches.cluster_plan.law import Cluster, Group
from benches.tiny_decoder import byte_tokenizer

Record = dict[str, Any]

ROUNDS = 7
WIDTHS, CONTEXTS, TOKENS = (16, 64), (512, 2048), 4  # TOKENS: of each branch in a round, and so steps
# As in the recorded trees: what a branch's step costs once is spread over its tokens.
HOST_ROWS, HOST_PROMPT, HOST_TOKENS = (256, 1024), 1106, 95
_VOCAB = 260


class Trees:
    """Branches that fork from one prompt, which stays; each call grows them anew."""

    def __init__(self, decoder: TreeDecoder, prompt: int, tokens: int) -> None:
        decoder.eos_token_ids = frozenset()
        self._decoder, self._tokens = decoder, tokens
        self.forwards = 0.0  # CPU seconds of the model's forwards
        engine = decoder.runtime.engine
        forward = engine.forward

        def timed(*args: Any) -> Any:
            begin = time.process_time()
            output = forward(*args)
            self.forwards += time.process_time() - begin
            return output

        engine.forward = timed  # type: ignore[method-assign]
        ids = [3 + i % (_VOCAB - 3) for i in range(prompt)]
        self._root: TreeBranch = decoder.run(decoder.root(ids, SamplingParams(max_tokens=tokens + 1)))

    def host_step(self, width: int) -> float:
        """What is left of a step without the model's forward."""
        self.forwards = 0.0
        whole = self.step(width)
        return whole - self.forwards / self._tokens

    def step(self, width: int) -> float:
        """Seconds of a step of `width` branches, the mean of `tokens` steps."""
        return self._decoder.run(self._grown(width))

    async def _grown(self, width: int) -> float:
        branches = self._root.fork(width)
        # The first token comes from the prompt's logits, without a forward.
        await gather(branch.step(max_step_tokens=1) for branch in branches)
        begin = time.process_time()
        await gather(branch.step(max_step_tokens=self._tokens) for branch in branches)
        took = time.process_time() - begin
        for branch in branches:
            branch.release()
        return took / self._tokens


def check() -> Record:
    """The default model's steps, and the law's for a group of one such machine; rates and steps in turn."""
    model, tokenizer = load_model()
    shape = shape_of_config(model.config, model.dtype)
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 30)
    peaks = Peaks(model.dtype, torch.device("cpu"))
    calls: dict[str, Callable[[], float]] = {
        name: partial(cpu_seconds, call) for name, call in peaks.calls.items()
    }
    for context in CONTEXTS:
        trees = Trees(decoder, context, TOKENS)
        calls |= {f"{context} {width}": partial(trees.step, width) for width in WIDTHS}
    times = in_turn(calls)
    machine = peaks.machine({name: times[name].median for name in peaks.calls})
    rows = [
        {
            "context": context,
            "branches": width,
            "measured": times[f"{context} {width}"].median,
            "quartiles": [times[f"{context} {width}"].low, times[f"{context} {width}"].high],
            "predicted": predicted(machine, shape, context, width),
        }
        for context in CONTEXTS
        for width in WIDTHS
    ]
    dtype = str(model.dtype).removeprefix("torch.")
    return {"dtype": dtype, "flops": machine.flops, "bandwidth": machine.bandwidth, "rows": rows}


def predicted(machine: Machine, shape: ModelShape, context: int, branches: int) -> float:
    """Seconds of a step; memory and links of one machine do not matter."""
    alone = Cluster(machine, memory=1, usable=1, link=1, latency=0, host=1, node=1)
    cost = search_cost(shape, prompt=context, branches=branches, generated=TOKENS + 1)
    return Group(alone, shape, 1).terms(cost.decode, branches * cost.steps).total / cost.steps


def host() -> list[Record]:
    """What a step takes beside the model's forward: scheduler, block tables, sampler, texts."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    model = hf.LlamaForCausalLM(config).eval()
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 27, max_batch_tokens=max(HOST_ROWS))
    trees = Trees(decoder, HOST_PROMPT, HOST_TOKENS)
    times = in_turn({str(rows): partial(trees.host_step, rows) for rows in HOST_ROWS})
    return [
        {"rows": rows, "host": seconds.median, "quartiles": [seconds.low, seconds.high]}
        for rows in HOST_ROWS
        for seconds in [times[str(rows)]]
    ]


def in_turn(calls: dict[str, Callable[[], float]]) -> dict[str, Quartiles]:
    """Of the seconds that each call returns, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(ROUNDS + 1):
        for name, call in calls.items():
            seconds = call()
            if round_:
                found[name].append(seconds)
    return {name: quartiles(seconds) for name, seconds in found.items()}


def cpu_seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def machine_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} virtual cores"
