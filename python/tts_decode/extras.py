"""Optional packages: how `pip` installs each, tested versions, and one-line errors for missing ones.

The base installation has numpy, torch and httpx. Every other package is imported where it is used, after
`require`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from shlex import join

# Module to the argument of `pip install`.
INSTALLS = {
    "accelerate": "tts-kernels[hf]",
    "llguidance": "tts-kernels[grammar]",
    "gguf": "tts-kernels[hf]",
    "huggingface_hub": "tts-kernels[hf]",
    "safetensors": "tts-kernels[hf]",
    "tokenizers": "tts-kernels[hf]",
    "transformers": "tts-kernels[hf]",
    "rich": "tts-kernels[search]",
    "scipy": "tts-kernels[search]",
    "typer": "tts-kernels[search]",
    "fastapi": "tts-kernels[serve]",
    "prometheus_client": "tts-kernels[serve]",
    "uvicorn": "tts-kernels[serve]",
    "math_verify": "tts-kernels[math]",
    "reasoning_gym": "tts-kernels[demo]",
    "ray": "tts-kernels[ray]",
    "datasets": "datasets",
    "pyarrow": "tts-kernels[results]",
    "matplotlib": "tts-kernels[plot]",
    "sentence_transformers": "sentence-transformers",
    "its_hub": "its_hub[lm]",
    "reasoners": "--no-deps llm-reasoners",
}

# Project to the first and the last minor version tested, for projects of which we use or replace parts that
# may change between versions.
TESTED = {
    "uvicorn": ((0, 30), (0, 54)),
    "its_hub": ((1, 2), (1, 2)),
    "llm-reasoners": ((1, 0), (1, 0)),
    "treequest": ((0, 3), (0, 3)),
}
_ALONE = ("llm-reasoners",)  # projects installed without their requirements


def require(module: str) -> None:
    """Imports an optional module, so that a later import statement succeeds.

    Raises:
        MissingExtraError: its package is not installed.
        ImportError: the package is installed but cannot be imported.
    """
    try:
        import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name != module.partition(".")[0]:
            raise
        raise explained(missing) from missing


def install_command(module: str) -> str:
    """Returns the command that installs an optional module.

    pip finds an extra of an installed package by name; a checkout is installed again.
    """
    installs = INSTALLS[module]
    extra = installs.removeprefix("tts-kernels")
    return f"pip install {join(installs.split())}" if extra == installs else install_extra(extra.strip("[]"))


def install_extra(extra: str) -> str:
    """Returns the command that installs all packages of an extra, like `install_command`."""
    return f"pip install 'tts-kernels[{extra}]' (in a checkout: '.[{extra}]')"


def require_tested(project: str) -> None:
    """Raises VersionError if a project of `TESTED` is installed in another version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version(project)
    except PackageNotFoundError:
        return
    first, last = TESTED[project]
    minor = tuple(int(part) if part.isdigit() else 0 for part in found.split(".")[:2])
    if not first <= minor <= last:
        from .errors import VersionError  # imports torch

        span = ".".join(map(str, first))
        wanted = f"{project}>={span},<{last[0]}.{last[1] + 1}"
        if last != first:
            span += f" to {'.'.join(map(str, last))}"
        alone = "--no-deps " if project in _ALONE else ""
        raise VersionError(f"{project}: got {found}, expected {span}; run: pip install {alone}'{wanted}'")


def installed(module: str) -> bool:
    return find_spec(module) is not None


def unavailable(owner: str, name: str, missing: ModuleNotFoundError) -> Exception:
    """Returns what the `__getattr__` of module `owner` raises if importing `name` failed with `missing`.

    It is an AttributeError, so that hasattr returns False. An import statement would turn that into "cannot
    import name" without a reason, so an import gets MissingExtraError.
    """
    from inspect import currentframe  # slow to import and rarely needed

    error = explained(missing)
    frame = currentframe()
    asking = frame and frame.f_back and frame.f_back.f_back
    if error is missing or (asking and asking.f_code.co_name == "_handle_fromlist"):  # importlib's
        return error
    return AttributeError(f"module {owner!r} has no attribute {name!r}: {error}")


def explained(missing: ModuleNotFoundError) -> ImportError:
    """Returns MissingExtraError if `missing` is about an optional package, otherwise `missing` itself."""
    package = (missing.name or "").partition(".")[0]
    if package not in INSTALLS:
        return missing
    from .errors import MissingExtraError  # imports torch, which the command's --help does without

    return MissingExtraError(f"{package}: not installed; run: {install_command(package)}", name=missing.name)
