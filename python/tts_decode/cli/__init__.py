"""The `tts-decode` command: search one prompt, compare strategies, show what this machine offers."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command; exit code 2 for a wrong invocation, 1 for a failure, 130 when interrupted."""
    try:
        from tts_decode.cli.app import run
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("tts_"):
            raise
        sys.exit(f"tts-decode: needs the package {missing.name}; run: pip install 'tts-kernels[search]'")
    sys.exit(run(sys.argv[1:]))
