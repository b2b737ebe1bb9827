"""The version, from the metadata of the installed package alone."""

from __future__ import annotations


def package_version() -> str:
    """Such as "0.1.0"; "unknown" where the package was built in place and not installed, as by gpu-check."""
    from importlib.metadata import PackageNotFoundError, version  # takes longer to import than tts_decode

    try:
        return version("tts-kernels")
    except PackageNotFoundError:
        return "unknown"
