"""What users write type-checks under mypy --strict, and a mistake does not."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

from tts_decode import SamplingParams

GOOD = """
SamplingParams(stop="\\n")
SamplingParams(stop=["\\n", "."], stop_token_ids=[1], suppress_token_ids=(2,))
first: str = SamplingParams(stop="\\n").stop[0]
"""
BAD = """
SamplingParams(stop=1)
SamplingParams(stop_token_ids="1")
"""


def check(folder: Path, source: str) -> list[str]:
    """mypy's lines about `source`. Following the imports of torch would take a minute."""
    (folder / "source.py").write_text(f"from {SamplingParams.__module__} import SamplingParams\n{source}")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=skip", "--no-error-summary"]
    config = ["--config-file=", f"--cache-dir={folder / 'cache'}", "--allow-subclassing-any"]
    files = ["source.py", inspect.getfile(SamplingParams)]
    done = subprocess.run(
        [*command, *config, *files], capture_output=True, text=True, check=False, cwd=folder
    )
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("source.py")]


def test_sampling_parameters(tmp_path: Path) -> None:
    assert check(tmp_path, GOOD) == []
    errors = check(tmp_path, BAD)
    assert [line.split(":")[1] for line in errors] == ["3", "4"]
    assert all("[arg-type]" in line for line in errors)
