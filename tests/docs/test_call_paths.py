"""The figures of docs/architecture.md: each names the files that its call passes, in that order."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeBranch, TreeDecoder

from tts_kernels import KVPool, KVTree, plan, tree_attention

ROOT = Path(__file__).parents[2]
FIGURE = re.compile(r"^### (.+?)\n.*?^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)


def figure(title: str) -> list[str]:
    """The files of a figure, from top to bottom."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    return re.findall(r'\["([\w./-]+)', dict(FIGURE.findall(page))[title])


class Tracer:
    """Files of our packages whose functions are called, in the order of their first call."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        for folder in ("python/tts_decode/", "tts_kernels/"):
            root = f"{ROOT}/{folder}"
            if event == "call" and name.startswith(root):
                file = folder + name.removeprefix(root)
                if file not in self.files:
                    self.files.append(file)

    def __enter__(self) -> list[str]:
        sys.setprofile(self)
        return self.files

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def check(title: str, passed: list[str]) -> None:
    shown = figure(title)
    assert [file for file in shown if file.endswith(".py")] == passed
    assert [file for file in shown if not (ROOT / file).exists()] == []


def on_branch(call: Callable[[TreeBranch], Any]) -> None:
    decoder = TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=1 << 22)

    async def run() -> None:
        branch = await decoder.root([5, 6, 7, 8], SamplingParams(temperature=0, max_step_tokens=1))
        for _ in range(3):  # what is done once is done
            await branch.step()
        result = call(branch)
        if asyncio.iscoroutine(result):
            await result

    decoder.run(run())


def test_a_step() -> None:
    async def step(branch: TreeBranch) -> None:
        with Tracer() as passed:
            await branch.step()
        check("A step", passed)

    on_branch(step)


def test_a_fork() -> None:
    def fork(branch: TreeBranch) -> None:
        with Tracer() as passed:
            branch.fork(2)
        check("A fork", passed)

    on_branch(fork)


def test_a_call_of_an_operator() -> None:
    pool = KVPool(num_layers=1, num_kv_heads=2, head_dim=32, num_pages=8)
    tree = KVTree(8, 16)
    branch = tree.create()
    tree.append([branch], [[1, 2, 3]])
    made = plan(*tree.block_tables([branch]), page_size=16)
    q = torch.zeros((1, 4, 32))
    with torch.inference_mode():
        tree_attention(q, pool.k_pages[0], pool.v_pages[0], made)
        with Tracer() as passed:
            tree_attention(q, pool.k_pages[0], pool.v_pages[0], made)
    check("A `q`", passed)
