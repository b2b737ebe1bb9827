"""Loads functions from the user's own files, named as in `my.py:name`."""

from __future__ import annotations

import inspect
import re
import sys
import zlib
from collections.abc import Callable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from tts_kernels.checks import a_type

from ..core.visible import one_line
from ..errors import TTSError
from ..sandbox import check_sandbox, python_tool
from .errors import UsageError

FUNCTIONS = {"tool": "code", "retrieve": "query", "extract": "text", "embed": "steps"}
"""Options of strategies that are functions, and what each is called with."""

_NAMED = re.compile(r"(.+\.py):([^:/\\]*)", re.DOTALL)


def names_function(text: str) -> bool:
    """Whether a value has the form FILE.py:NAME."""
    return _NAMED.fullmatch(text) is not None


def load_function(text: str, option: str, *arguments: str) -> Callable[..., Any]:
    """Returns the function FILE.py:NAME; the file runs once.

    arguments: the positional arguments of its calls, for the message about its signature.
    Raises UsageError, which begins with the option.
    """
    found = _NAMED.fullmatch(text)
    if found is None:
        raise UsageError(f"{option}: got {text!r}, expected FILE.py:NAME")
    function: Any = attribute(text, option)
    if not callable(function):
        raise UsageError(f"{option}: got {found[2]} in {found[1]}, {a_type(function)}, expected a function")
    expected = f"{found[2]}({', '.join(arguments)})"
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise UsageError(
            f"{option}: got {found[2]}{inspect.signature(function)} in {found[1]}, expected it to take "
            f"{expected}: {error}"
        ) from None
    except ValueError:  # a builtin without a signature
        pass
    made: Callable[..., Any] = function
    return made


class UserFunction:
    """A function with the text that names it, which identifies runs."""

    def __init__(self, named: str, function: Callable[..., Any]) -> None:
        self.named, self._function = named, function
        self.__name__ = named

    def __call__(self, *arguments: Any) -> Any:
        return called(self.named, self._function, *arguments)

    def __repr__(self) -> str:
        return self.named


def called(named: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of the user. Raises UsageError, naming the function, if it raises."""
    try:
        return function(*arguments)
    except TTSError:
        raise
    except Exception as error:
        raise UsageError(f"{named} raised {type(error).__name__}: {one_line(str(error))}") from error


def user_function(option: str, text: str, *, unsafe_tools: bool = False) -> UserFunction:
    """Returns the function of `--option KEY=FILE.py:NAME`; "tool" also takes "python", the sandbox."""
    if option == "tool" and text == "python":
        if not unsafe_tools:
            check_sandbox()
        return UserFunction(text, python_tool(unsafe=unsafe_tools))
    function = load_function(text, f"--option {option}", FUNCTIONS[option])
    return UserFunction(text, _answering(text, function) if option == "extract" else function)


def _answering(named: str, function: Callable[..., Any]) -> Callable[[str], str | None]:
    """Returns a checked function, which must return the answer of a text or None."""

    def extract(text: str) -> str | None:
        answer = function(text)
        if answer is None or isinstance(answer, str):
            return answer
        raise UsageError(f"{named}: got {a_type(answer)} of it, expected a text or None")

    return extract


def attribute(text: str, option: str) -> Any:
    """Returns the object FILE.py:NAME, of any kind. Raises UsageError."""
    found = _NAMED.fullmatch(text)
    if found is None:
        raise UsageError(f"{option}: got {text!r}, expected FILE.py:NAME")
    path, name = Path(found[1]).expanduser(), found[2]
    if not path.is_file():
        raise UsageError(f"{option}: there is no file {path}; expected FILE.py:NAME")
    module = _module(path.resolve(), option)
    if not name.isidentifier() or not hasattr(module, name):
        known = sorted(key for key, value in vars(module).items() if _own(module, key, value))
        defined = ", ".join(known) or "it has none"
        raise UsageError(f"{option}: got {name!r}, expected a name that {path} defines: {defined}")
    return getattr(module, name)


def _own(module: ModuleType, key: str, value: object) -> bool:
    made = getattr(getattr(value, "body", value), "__module__", None)  # a strategy's function
    return not key.startswith("_") and callable(value) and made == module.__name__


def _module(path: Path, option: str) -> ModuleType:
    """Returns the file's module. Raises UsageError."""
    try:
        return _loaded(path)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{option}: {path} raised {type(error).__name__}: {one_line(str(error))}") from error


@cache
def _loaded(path: Path) -> ModuleType:
    """Runs the file once, even if several options name it. It can import its neighbours, as a script can."""
    # Not under its own name, which another module may have; but registered, as dataclasses look it up.
    name = f"{path.stem}_{zlib.crc32(str(path).encode(errors='surrogateescape')):08x}"
    spec = spec_from_file_location(name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
