"""Converted copies of GGUF files in the user's cache folder: each a folder that is complete or absent.

A copy is named by the digest of its file's bytes, so an updated file is converted again. It records when each
file in it was written and how long that is, so a damaged one is detected without reading it.

The digest of an unchanged file is not computed again: it is stored under what the system says of the file,
including its inode, size and times. That is trusted only if the file's last change is seconds older than its
digest, because another change in the same clock tick would not show.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import ModelLoadError

_LONGEST_STEM = 100  # of the file's name in its copy's name: file systems allow 255 bytes
_PARTIAL = ".partial-"
_FACTS = "files.json"
_STALE_SECONDS = 24 * 3600.0
_SETTLED_SECONDS = 5.0  # since a file's last change


def cache_folder() -> Path:
    """Returns ``$XDG_CACHE_HOME/tts-kernels/models``, with ``~/.cache`` if the variable is not set.

    Raises ModelLoadError if there is no home folder either.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(named) if named else Path.home() / ".cache"
    except RuntimeError as cause:
        raise ModelLoadError(
            "model: there is no folder for converted copies of GGUF files, as this user has no home folder; "
            "set XDG_CACHE_HOME, or HOME"
        ) from cause
    return base / "tts-kernels" / "models"


def is_known(file: Path) -> bool:
    """Whether `copy_of` can avoid reading all of the file. Raises ModelLoadError like it."""
    return _kept_digest(file) is not None


def copy_of(file: Path, version: str) -> Path:
    """Returns the folder of a file's copy. version: of the copy's format.

    Raises ModelLoadError if the file cannot be read.
    """
    stem = re.sub(r"[^\w.-]", "_", file.stem, flags=re.ASCII)[:_LONGEST_STEM]
    return cache_folder() / f"{stem}-{_digest(file)}-{version}"


def store(copy: Path, file: Path, fill: Callable[[Path], None]) -> None:
    """Makes the folder `copy` of a file: `fill` fills a temporary one, which is then renamed.

    Raises OSError if it cannot be kept, and ModelLoadError if the file changed meanwhile.
    """
    copy.parent.mkdir(parents=True, exist_ok=True)
    _sweep(copy.parent)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=copy.parent, ignore_cleanup_errors=True) as partial:
        whole = Path(partial) / copy.name
        whole.mkdir()
        fill(whole)
        (whole / _FACTS).write_text(json.dumps(_facts_of(whole)), encoding="utf-8")
        require_unchanged(copy, file)
        # Another process may have finished first: its copy is as good as ours.
        with contextlib.suppress(FileExistsError):
            _rename(whole, copy)


def require_unchanged(copy: Path, file: Path) -> None:
    """Raises ModelLoadError if the file is no longer the one that `copy_of` named the copy for."""
    if copy_of(file, copy.name.rpartition("-")[2]) != copy:
        raise ModelLoadError(f"model: {file} changed while it was read; load it again when it is complete")


def require_whole(copy: Path) -> None:
    """Raises ModelLoadError unless the copy's files are as written, by their sizes and times."""
    try:
        kept = json.loads((copy / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ModelLoadError(f"model: the converted copy {copy} is damaged") from cause
    if kept != _facts_of(copy):
        raise ModelLoadError(f"model: the converted copy {copy} was changed or is damaged")


def discard(copy: Path) -> None:
    """Removes a damaged copy if possible. Targets of links stay."""
    with contextlib.suppress(OSError):
        if copy.is_symlink():
            copy.unlink()
        else:
            shutil.rmtree(copy)


def save_into(folder: Path, saved: Any) -> None:
    """Runs `saved.save_pretrained`. Raises OSError instead of what writers in Rust raise for a full disk."""
    try:
        saved.save_pretrained(folder)
    except OSError:
        raise
    except Exception as cause:
        raise OSError(str(cause)) from cause


def _facts_of(folder: Path) -> dict[str, list[int]]:
    """Returns sizes and times of its files: reading all of them would take too long."""
    found = {entry.name: entry.stat() for entry in folder.iterdir() if entry.name != _FACTS}
    return {name: [facts.st_size, facts.st_mtime_ns] for name, facts in found.items()}


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if target.is_dir():
            raise FileExistsError(target) from None
        raise


def _sweep(folder: Path) -> None:
    """Removes leftovers of killed conversions; no running conversion takes as long as a day."""
    for partial in folder.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(partial)


def _kept_digest(file: Path) -> str | None:
    """Returns the digest of the file's current state, if it was kept."""
    with _reading(file):
        known = _known_digest(file)
        if known.is_file() and re.fullmatch("[0-9a-f]{16}", text := known.read_text(encoding="ascii")):
            return text
    return None


def _digest(file: Path) -> str:
    """Returns the digest of a file's bytes, in hexadecimal."""
    if (kept := _kept_digest(file)) is not None:
        return kept
    with _reading(file):
        known, digest = _known_digest(file), hashlib.blake2b(digest_size=8)
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    _keep_digest(file, known, digest.hexdigest())
    return digest.hexdigest()


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise ModelLoadError(f"model: cannot read {file}: {cause.strerror}") from cause


def _known_digest(file: Path) -> Path:
    """Returns where the digest of the file's current state is kept."""
    found = file.stat()
    facts = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return (
        cache_folder().parent / "digests" / hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
    )


def _keep_digest(file: Path, known: Path, digest: str) -> None:
    """Keeps the digest, unless the file changed meanwhile or may change unnoticed."""
    with contextlib.suppress(OSError, ValueError):
        changed = max(file.stat().st_mtime, file.stat().st_ctime)
        if _known_digest(file) == known and time.time() - changed > _SETTLED_SECONDS:
            known.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=known.parent, delete=False, encoding="ascii"
            ) as partial:
                partial.write(digest)
            Path(partial.name).replace(known)
