"""Adapters and the server import no more than they need, and refuse versions that were not tested."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tts_decode.errors import MissingExtraError, VersionError
from tts_decode.extras import TESTED, require_tested

ROOT = Path(__file__).parents[2]
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n"
ITS_HUB = """
import sys
import tts_decode.integrations.its_hub
print([name for name in ("fastapi", "starlette", "uvicorn", "tts_decode.serve") if name in sys.modules])
"""
REFUSED = """
from importlib import import_module
for name in "integrations.its_hub", "integrations.llm_reasoners", "integrations.treequest", "serve.config":
    try:
        import_module(f"tts_decode.{name}")
    except ImportError as error:
        print(type(error).__name__, error)
"""


def installed(folder: Path, project: str, version: str, sources: dict[str, str] | None = None) -> None:
    """As pip leaves a project there. sources: of its files, by their paths."""
    files = {f"{project.replace('-', '_')}-{version}.dist-info/METADATA": METADATA.format(project, version)}
    for path, text in (files | (sources or {})).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def run(script: str, folder: Path) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_its_hub_is_served_without_the_packages_of_the_server(tmp_path: Path) -> None:
    sources = {"its_hub/__init__.py": "", "its_hub/api.py": "class AbstractLanguageModel: pass"}
    installed(tmp_path, "its_hub", "1.2.7", sources)
    assert run(ITS_HUB, tmp_path) == ["[]"]


def test_other_versions_are_refused_by_name_with_the_remedy(tmp_path: Path) -> None:
    installed(tmp_path, "its_hub", "1.3.0", {"its_hub/__init__.py": ""})
    installed(tmp_path, "llm-reasoners", "0.9", {"reasoners/__init__.py": ""})
    installed(tmp_path, "treequest", "0.4.0")
    installed(tmp_path, "uvicorn", "0.55.0")
    assert run(REFUSED, tmp_path) == [
        "VersionError its_hub: got 1.3.0, expected 1.2; run: pip install 'its_hub>=1.2,<1.3'",
        "VersionError llm-reasoners: got 0.9, expected 1.0; "
        "run: pip install --no-deps 'llm-reasoners>=1.0,<1.1'",
        "VersionError treequest: got 0.4.0, expected 0.3; run: pip install 'treequest>=0.3,<0.4'",
        "VersionError uvicorn: got 0.55.0, expected 0.30 to 0.54; run: pip install 'uvicorn>=0.30,<0.55'",
    ]


@pytest.mark.parametrize("version", ["0.30", "0.30.0", "0.54.1", "0.42.0.dev1"])
def test_tested_versions_pass(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    require_tested("uvicorn")


@pytest.mark.parametrize("version", ["0.29.9", "0.55", "1.0", "unknown"])
def test_other_versions_do_not(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    with pytest.raises(VersionError, match=f"^uvicorn: got {version}, expected") as caught:
        require_tested("uvicorn")
    assert isinstance(caught.value, MissingExtraError)  # which the command tells in a line


def test_what_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    for project in TESTED:
        require_tested(project)


def test_the_extra_brings_a_version_that_was_tested() -> None:
    assert '"uvicorn>=0.30,<0.55"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert TESTED["uvicorn"] == ((0, 30), (0, 54))
