"""Errors that the user caused, which are reported in one line instead of a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..core.naming import renamed_in_ranges
from ..errors import TTSError

MIB = 1 << 20
MOST = 2**63 - 1  # what the functions behind the options count to
# Names of internal arguments at the beginning of errors, and the options they come from.
_SAME = (
    *("model", "dtype", "weights", "device", "kv_dtype", "api_keys", "scorer_timeout", "tool_timeout"),
    *(
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
    ),
    *("logit_bias", "stop", "max_tokens", "max_step_tokens", "top_logprobs"),
)
_OPTIONS = {name: f"--{name.replace('_', '-')}" for name in _SAME}
_ARGUMENT = re.compile(r"\b(model|dtype|weights|device|kv_dtype)=(['\"])([\w:.-]+)\2")  # in Python's syntax
_OPTIONS |= {
    "kv_bytes": "--kv-mib",
    "KVOffload.bytes": "--kv-offload-mib",
    "KVOffload.folder": "--kv-offload-folder",
    "reward model": "--scorer",
}
_OPTIONS |= {"address": "--ray", "actors": "--ray-actors", "replicas": "--replicas"}
_OPTIONS |= {"stop_token_ids": "--stop-token", "suppress_token_ids": "--suppress", "options": "--choice"}


class UsageError(TTSError):
    """An argument of the command is wrong; exit code 2."""


class CommandError(TTSError):
    """The command is valid but cannot be carried out; exit code 1."""


@contextmanager
def usage_errors(options: Mapping[str, str] = {}) -> Iterator[None]:
    """Converts ValueError into UsageError, for calls whose arguments come from the user.

    Subtypes pass through. options: as in `named`.
    """
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise UsageError(named(str(error), options)) from error


def named(text: str, options: Mapping[str, str] = {}) -> str:
    """Returns an error's text with the user's options in place of internal arguments.

    options: by the argument that the error begins with, in addition to those with the same name everywhere.
        An option of the form "--option: got VALUE" also puts the user's value in place of the internal one.
    """
    argument, _, rest = text.partition(": ")
    option = (_OPTIONS | dict(options)).get(argument.partition("[")[0])
    if option is not None and rest:
        text = f"{option}: {rest}"
        if ": got " in option:
            text = f"{option}, {rest.partition(', ')[2]}"
        text = renamed_in_ranges(text, argument, option.partition(":")[0])
    text = _ARGUMENT.sub(lambda found: f"{_OPTIONS[found[1]]} {found[3]}", text)
    text = re.sub(r"\bkv_bytes = (\d+)", lambda found: f"--kv-mib = {int(found[1]) / MIB:g}", text)
    text = re.sub(r"\bkv_bytes\b", "--kv-mib", text)
    text = re.sub(r"\bstart_seconds\b", "--ray-start-seconds", text)
    return re.sub(r"\bkv_offload\b|\bKVOffload\.bytes\b", "--kv-offload-mib", text)


def at_least(least: int, most: int = MOST, /, **values: int | None) -> None:
    """Raises UsageError unless each value is from `least` to `most`, or None.

    values: by the name of their option, with underscores.
    """
    for name, value in values.items():
        if value is None or least <= value <= most:
            continue
        expected = f"at least {least}" if value < least else f"at most {most}"
        raise UsageError(f"--{name.replace('_', '-')}: got {value}, expected {expected}")
