"""`make integrations`: what is missing fails, an old Python is refused, and .ci/run leaves out one part."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TESTS = """
from needed import needs
{place}
def test_of_a_package() -> None:
    needs("a_package_that_nobody_has")
"""


@pytest.mark.parametrize("place", ["", 'needs("a_package_that_nobody_has")'], ids=["in the test", "ahead"])
@pytest.mark.parametrize(("variable", "code"), [("0", 0), ("1", 1)])
def test_a_missing_package(place: str, variable: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "test_file.py").write_text(TESTS.format(place=place))
    env = os.environ | {"TTS_TESTS_ALL_INSTALLED": variable, "PYTHONPATH": str(ROOT / "tests/helpers")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", tmp_path],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "needs the package a_package_that_nobody_has, which `make integrations` installs" in done.stdout
    # 5: all tests of a module were skipped while they were collected. 2: a module failed there.
    assert done.returncode in ({0, 5} if code == 0 else {1, 2}), done.stdout


@pytest.mark.parametrize(
    ("version", "served"), [((3, 10, 14), False), ((3, 11, 0), True), ((3, 14, 0), True)]
)
def test_the_python_that_it_takes(version: tuple[int, ...], served: bool, tmp_path: Path) -> None:
    """Through a Python that says to be of that version, and one in .venv if there is one."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = {version}\n'\"$2\"\n"
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "-C", ROOT, "integration-python", f"PYTHON={python}", f"VENV={tmp_path}/none"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode == 0) == served, done.stderr
    assert ("Python: got 3.10 in " in done.stderr) != served


def test_the_parts() -> None:
    parts = re.findall(r"^INTEGRATIONS := (.*)", MAKEFILE, re.M)[0].split()
    assert {f"integration-{part}" for part in parts} <= set(re.findall(r"^([\w-]+):", MAKEFILE, re.M))
    commands = re.findall(r"^make .*", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.M)
    run = re.findall(r"integration-(\w+)", " ".join(commands))
    assert set(parts) - set(run) == {"vllm"}
