"""The versions of transformers that this integration was tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from .errors import VersionError

TESTED = (5, 19), (5, 24)  # first and last minor version


def cache_argument() -> str:
    """Returns the name under which this version's models take a cache."""
    return "cache" if _minor(version("transformers")) >= (5, 24) else "past_key_values"


def check_version() -> None:
    """Raises VersionError unless transformers is installed in a tested version."""
    first, last = (".".join(map(str, minor)) for minor in TESTED)
    remedy = f"pip install 'transformers>={first},<{TESTED[1][0]}.{TESTED[1][1] + 1}'"
    try:
        found = version("transformers")
    except PackageNotFoundError as missing:
        raise VersionError(f"transformers: got none, expected {first} to {last}; {remedy}") from missing
    if not TESTED[0] <= _minor(found) <= TESTED[1]:
        raise VersionError(f"transformers: got {found}, expected {first} to {last}; {remedy}")


def _minor(found: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in found.split(".")[:2])
