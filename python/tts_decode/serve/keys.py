"""API keys: where they come from, and whether a request carries one."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from tts_kernels.checks import a_type

VARIABLE = "TTS_DECODE_API_KEYS"
_SHORTEST = 8  # characters


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Returns the keys of a file, one per line, and of the environment's variable, separated by commas.

    Raises ValueError for a file that cannot be read or holds none, a variable that is set and holds none, and
    a key that is too short.
    """
    keys = [key.strip() for key in environment.get(VARIABLE, "").split(",") if key.strip()]
    if VARIABLE in environment and not keys:
        raise ValueError(f"{VARIABLE}: holds no key, expected some with commas; unset it to ask for none")
    check_keys(VARIABLE, keys)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as cause:
            raise ValueError(f"api_keys: {file} cannot be read as a file of keys: {cause}") from cause
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"api_keys: {file} holds no key, expected one a line")
        check_keys("api_keys", found)
        keys += found
    return tuple(dict.fromkeys(keys))


def check_keys(source: str, keys: Sequence[str]) -> None:
    """Raises TypeError for a single text, ValueError for an invalid key.

    Keys are secret, so an error names a key by its number. source: of the keys, for an error.
    """
    if isinstance(keys, str) or not isinstance(keys, Sequence) or not all(isinstance(k, str) for k in keys):
        raise TypeError(f"{source}: got {a_type(keys)}, expected a list of texts")
    for number, key in enumerate(keys, start=1):
        if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"{source}: got {len(key)} characters for key {number}, expected at least {_SHORTEST}, of "
                "ASCII without blanks"
            )


class KeyCheck:
    """Compares keys in a time that reveals nothing about them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    @property
    def asks(self) -> bool:
        return bool(self._digests)

    def __call__(self, authorization: str) -> bool:
        """Whether the value of a request's Authorization header carries a key."""
        given = _digest(authorization)
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return authorization.partition(" ")[0].lower() == "bearer" and any(found)


def owner_of(authorization: str) -> str:
    """Returns a name for the key in an Authorization header, however the header is spelled."""
    return _digest(authorization).hex()


def _digest(authorization: str) -> bytes:
    key = authorization.partition(" ")[2].strip()
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
