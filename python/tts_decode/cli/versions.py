"""Reads versions of packages from their metadata; nothing is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ..version import package_version

MISSING = "not installed"


def version_of(project: str) -> str:
    try:
        return version(project)
    except PackageNotFoundError:
        return MISSING


def version_text() -> str:
    """Returns the output of --version: a line each for the command, its kernels and their environment."""
    found = {name: version_of(name) for name in ("torch", "transformers")}
    own = package_version()
    lines = [
        f"tts-decode {own}",
        f"tts-kernels {own}",
        *(f"{name} {number}" for name, number in found.items()),
    ]
    return "\n".join(lines)
