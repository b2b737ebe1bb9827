"""Versions of packages, from their metadata alone: nothing is imported."""

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
    """What --version prints: a line for the command, its kernels, and what they run on."""
    found = {name: version_of(name) for name in ("torch", "transformers")}
    own = package_version()
    lines = [
        f"tts-decode {own}",
        f"tts-kernels {own}",
        *(f"{name} {number}" for name, number in found.items()),
    ]
    return "\n".join(lines)
