"""Writes a folder that Hugging Face's `kernels` loads: python -m tts_kernels.integrations.hub_build OUT

It holds a copy of this package with its compiled module: for this version of Python, this minor version of
torch and this kind of machine.

    tts_kernels = kernels.get_local_kernel(Path("OUT"), backend="cpu")
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import sys
from pathlib import Path

import torch

from .. import _core
from ..checks import instance

_PACKAGE = Path(__file__).parents[1]


def build(out: Path) -> Path:
    """Writes the build folder; returns the folder of its one variant.

    Raises:
        FileExistsError: `out` is a file, or not empty.
        OSError: it cannot be written. Anything partly written is removed.
    """
    instance("out", out, Path, "pass pathlib.Path(out)")
    try:
        new = not out.exists()
        if new or (out.is_dir() and not any(out.iterdir())):
            return _write(out, new)
    except OSError as cause:
        raise OSError(
            f"out: got {out}, expected a folder that can be written: {cause.strerror or cause}; pass another"
        ) from cause
    raise FileExistsError(f"out: got {out}, which is there, expected a new or an empty folder; pass another")


def _write(out: Path, new: bool) -> Path:
    """Writes the build. new: `out` does not exist yet."""
    try:
        return _write_variant(out / "build" / variant_name())
    except BaseException:
        shutil.rmtree(out if new else out / "build", ignore_errors=True)
        raise


def _write_variant(variant: Path) -> Path:
    shutil.copytree(_PACKAGE, variant, ignore=shutil.ignore_patterns("__pycache__", "_core.*.so"))
    shutil.copy(_core.__file__, variant)
    metadata = {
        # Name of the module and of the operators' namespace, unique among the builds in the process
        "id": f"tts_kernels_{_digest(variant)}",
        "name": "tts-kernels",
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return variant


def variant_name() -> str:
    """Returns the name that `kernels` gives a build for torch on this kind of machine."""
    major, minor = torch.__version__.split(".")[:2]
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return f"torch{major}{minor}-cpu-{machine}-{platform.system().lower()}"


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tts_kernels.integrations.hub_build", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", type=Path, help="a new or an empty folder")
    try:
        variant = build(parser.parse_args().out)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{variant}: load it with kernels.get_local_kernel(Path({str(variant.parents[1])!r}), backend='cpu')"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
