"""Requirements of a test beyond the extra `test`.

If one is missing, the test is skipped, but it fails in `make integrations`, which installs it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import NoReturn

import pytest

ALL_INSTALLED = "TTS_TESTS_ALL_INSTALLED"  # "1" in the Makefile


def needs(module: str) -> None:
    """Of a test, or of a whole module while it is imported."""
    if find_spec(module) is None:
        missing(f"needs the package {module}, which `make integrations` installs")


def missing(reason: str) -> NoReturn:
    if os.environ.get(ALL_INSTALLED) == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
