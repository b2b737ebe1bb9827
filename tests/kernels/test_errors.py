"""Every exception that the packages define derives from TTSError, and is named as one."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest
from house_checks import SOURCES, read_modules

from tts_kernels.errors import TTSError

# Part of a module's name -> the package that it cannot be imported without, where that may be absent.
OPTIONAL = {
    ".backends.triton": "triton",
    ".integrations.vllm": "vllm",
    ".integrations.its_hub": "its_hub",
    ".integrations.llm_reasoners": "reasoners",
}


@pytest.mark.parametrize("package", SOURCES)
def test_exceptions_have_one_base(package: str) -> None:
    absent = [part for part, needed in OPTIONAL.items() if find_spec(needed) is None]
    names = [
        name
        for name in read_modules(package)
        if not name.endswith(("__main__", "sandbox.checker"))  # a program that runs without the package
        and not any(part in name for part in absent)
    ]
    found = {
        value
        for name in names
        for value in vars(import_module(name)).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__.startswith(package)
    }
    assert len(found) > 2
    assert [
        kind for kind in found if not issubclass(kind, TTSError) or not kind.__name__.endswith("Error")
    ] == []
