"""Reads the version from the metadata of the installed package, the only place that holds it."""

from __future__ import annotations


def package_version() -> str:
    """Returns a version such as "0.1.0", or "unknown" for an uninstalled in-place build, as in gpu-check."""
    from importlib.metadata import PackageNotFoundError, version  # takes longer to import than tts_decode

    try:
        return version("tts-kernels")
    except PackageNotFoundError:
        return "unknown"
