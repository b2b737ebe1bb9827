"""Checks that an sdist and a wheel hold exactly the right files, based on those that git tracks.

python -m benches.check_dist FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
_LEFT_OUT = (".ci/", ".github/", ".gitignore", ".pre-commit-config.yaml")  # as pyproject.toml's sdist.exclude
_PACKAGES = {
    "tts_kernels/": "tts_kernels/",
    "python/tts_decode/": "tts_decode/",
}  # source folder to wheel folder


def tracked_files() -> set[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def sdist_faults(names: set[str], tracked: set[str]) -> list[str]:
    """What is missing and what is too much, a line each. names: as in the archive, with its top folder."""
    found = {name.partition("/")[2] for name in names}
    expected = {name for name in tracked if not name.startswith(_LEFT_OUT)} | {"PKG-INFO"}
    return _faults("sdist", found, expected)


def wheel_faults(names: set[str], tracked: set[str]) -> list[str]:
    modules = {name for name in names if name.startswith("tts_kernels/_core.") and name.endswith(".so")}
    faults = [] if len(modules) == 1 else [f"wheel: got {len(modules)} compiled modules, expected 1"]
    metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    expected = {
        target + name.removeprefix(source)
        for name in tracked
        for source, target in _PACKAGES.items()
        if name.startswith(source)
    }
    return faults + _faults("wheel", names - modules - metadata, expected)


def _faults(archive: str, found: set[str], expected: set[str]) -> list[str]:
    missing = [f"{archive}: lacks {name}" for name in sorted(expected - found)]
    return missing + [f"{archive}: holds {name}, which is no part of it" for name in sorted(found - expected)]


def main(folder: str) -> None:
    (sdist,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
    tracked = tracked_files()
    with tarfile.open(sdist) as archive:
        faults = sdist_faults({m.name for m in archive.getmembers() if m.isfile()}, tracked)
    with zipfile.ZipFile(wheel) as archive:
        faults += wheel_faults({name for name in archive.namelist() if not name.endswith("/")}, tracked)
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{sdist.name}: {sdist.stat().st_size:,} bytes; {wheel.name}: {wheel.stat().st_size:,} bytes")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main(*sys.argv[1:])
