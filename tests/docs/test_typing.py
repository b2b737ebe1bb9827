"""Users' code type-checks under mypy --strict, and a mistake does not."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tts_decode.core import params, running

GOOD_PARAMS = """
from tts_decode.core.params import SamplingParams
SamplingParams(stop="\\n")
SamplingParams(stop=["\\n", "."], stop_token_ids=[1], suppress_token_ids=(2,))
first: str = SamplingParams(stop="\\n").stop[0]
"""
BAD_PARAMS = """
from tts_decode.core.params import SamplingParams
SamplingParams(stop=1)
SamplingParams(stop_token_ids="1")
"""
GOOD_GATHER = """
import asyncio
from tts_decode.core.running import gather
async def step(name: str) -> int:
    return len(name)
async def main(task: asyncio.Task[int]) -> list[int]:
    lengths = await gather(step(name) for name in "abc")
    lengths += await gather([step("a"), step("b")])
    lengths += await gather(step("a"), step("b"), task)
    lengths += await gather(task)
    return lengths
"""
BAD_GATHER = """
from tts_decode.core.running import gather
async def step(name: str) -> int:
    return len(name)
async def main() -> list[str]:
    return await gather(step(name) for name in "abc")
async def other() -> list[str]:
    return await gather(step("a"), step("b"))
async def third() -> list[int]:
    return await gather(3)
"""


def check(folder: Path, source: str, module: ModuleType) -> list[tuple[int, str]]:
    """Lines and kinds of mypy's errors about `source`. Following the imports of torch would take a minute."""
    (folder / "source.py").write_text(source)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=skip", "--no-error-summary"]
    config = [
        "--config-file=",
        f"--cache-dir={folder / 'cache'}",
        "--allow-subclassing-any",
        "--hide-error-context",
    ]
    files = ["source.py", inspect.getfile(module)]
    done = subprocess.run(
        [*command, *config, *files], capture_output=True, text=True, check=False, cwd=folder
    )
    assert not done.stderr, done.stderr
    errors = [line for line in done.stdout.splitlines() if line.startswith("source.py") and "error:" in line]
    return [(int(line.split(":")[1]), line.rpartition("[")[2].rstrip("]")) for line in errors]


def test_sampling_parameters(tmp_path: Path) -> None:
    assert check(tmp_path, GOOD_PARAMS, params) == []
    assert check(tmp_path, BAD_PARAMS, params) == [(3, "arg-type"), (4, "arg-type")]


def test_gather(tmp_path: Path) -> None:
    assert check(tmp_path, GOOD_GATHER, running) == []
    errors = check(tmp_path, BAD_GATHER, running)
    assert {line for line, _ in errors} == {6, 8, 10}
