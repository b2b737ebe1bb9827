"""A file of what engine, scorers and tools returned, from which an interrupted search continues.

A strategy is a function of its steps, scores and draws, and all draws come from seeds. So resuming a search
means running it again from the start: what the file holds is not sampled or scored again but returned as
recorded, in the order in which it came. Tokens of recorded steps go through the model once more, all of a
step in one forward, for their KV pages.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from tts_kernels.checks import is_integer, is_real

from ..core.params import SamplingParams
from ..core.progress import Hold
from ..core.step import Step
from ..errors import JournalError, PromptTooLongError
from ..records.record_file import RecordFile
from ..records.strict_json import dumps, loads
from .resuming import Entry, Spent, Turns, UnderWay

if TYPE_CHECKING:
    from ..core.interfaces import Branch

T = TypeVar("T")

SCHEMA, VERSION = "tts-decode/journal", 5


class Journal:
    """The journal of one search, in JSON lines: a header, then an entry for everything that returned.

    Args:
        path: the file. It is created, or replaced.
        resume: continues with what the file holds, if it exists. An incomplete last line, as after a crash,
            is dropped.

    The file is locked until `close`, which the end of the search calls. What a cancelled call had sampled is
    sampled again in a resumed search; it was already paid for.

    Raises:
        JournalError: the file is in use, damaged, of another version, or cannot be read or written; when the
            strategy is called: it belongs to another search, or there is no space left. Its content stays.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        self._recorded: dict[str, Entry] = {}
        self._file = RecordFile(self.path, SCHEMA, VERSION, resume=resume, error=JournalError)
        self._take_in()
        self._keys: WeakKeyDictionary[Branch, str] = WeakKeyDictionary()  # branch -> its place in the search
        self._forks: dict[str, int] = {}  # key of a branch -> forks made of it
        self._calls: dict[str, int] = {}  # key of a branch -> calls made on it
        self._turns: Turns | None = None  # set by `begin`

    # -- the search, as it tells who is who

    def begin(self, strategy: str, options: Mapping[str, object], root: Branch) -> None:
        plain = {name: _plain(value) for name, value in options.items()}
        header: dict[str, Any] = {
            "strategy": strategy,
            "options": plain,
            "sampling": _sampling(root.sampling),
            "seed": root.seed,
            "prompt": root.full_text,
        }
        if self._file.header is None:
            self._file.write(header)
        else:
            header, defaults = loads(dumps([header, SamplingParams().to_dict()]).encode())
            recorded = dict(self._file.header)
            if isinstance(sampling := recorded.get("sampling"), dict):
                recorded["sampling"] = defaults | sampling  # parameters newer than the file
            for name, value in header.items():
                if recorded.get(name) != value:
                    raise JournalError(
                        f"journal {self.path} belongs to another search: its {name} is "
                        f"{recorded.get(name)!r:.200}, here it is {value!r:.200}; "
                        "remove it to start anew, or take another file"
                    )
        self._keys[root] = "0"
        self._turns = Turns(list(self._recorded.values()), root.budget, self._give_up)

    def follow(self, children: Sequence[Branch], parent: Branch) -> None:
        """Registers the children of one fork."""
        key = self._keys[parent]
        count = self._forks[key] = self._forks.get(key, 0) + 1
        for i, child in enumerate(children):
            self._keys[child] = f"{key}.{count}-{i}"

    def close(self) -> None:
        if self._turns is not None:
            self._turns.close()
        self._file.close()

    # -- calls

    async def root(self, key: str, call: Callable[[], Awaitable[Branch]]) -> Branch:
        """Returns the branch of a further prompt, which a replay computes again. key: unique."""
        branch = await self._repeated(key, call)
        self._keys[branch] = key
        return branch

    async def repeated_on(self, branch: Branch, call: Callable[[], Awaitable[T]]) -> T:
        """Runs `await call()` on the branch, also in a replay: its result is not kept."""
        return await self._repeated(self._key(branch), call)

    async def _repeated(self, key: str, call: Callable[[], Awaitable[T]]) -> T:
        return await self._call(key, call, lambda _: {"numbers": []}, lambda _: call())

    async def step(self, branch: Branch, sampling: dict[str, Any]) -> Step:
        """Returns `branch.step(**sampling)`, or the recorded step."""

        async def again(data: dict[str, Any]) -> Step:
            step = _unpack_step(data)
            if step.tokens or not branch.finished:  # else the branch was finished before
                await branch.replay(step)
            return step

        return await self._call(self._key(branch), lambda: branch.step(**sampling), _pack_step, again)

    async def numbers(
        self, branches: Sequence[Branch], call: Callable[[], Awaitable[list[float]]], *, again: bool = False
    ) -> list[float]:
        """Returns `await call()`, or the recorded numbers.

        again: the call changes a branch, so a replay makes it too.
        """

        async def recorded(data: dict[str, Any]) -> list[float]:
            if again:
                await call()
            return _floats(data["numbers"])

        key = f"{self._key(branches[0])} x{len(branches)}"
        return await self._call(key, call, lambda numbers: {"numbers": numbers}, recorded)

    async def value(self, key: str, call: Callable[[], Awaitable[T]], read: Callable[[object], T]) -> T:
        """Returns `await call()`, a JSON value, or `read` of the recorded one. key: unique."""

        async def recorded(data: dict[str, Any]) -> T:
            try:
                return read(data["value"])
            except (TypeError, ValueError) as error:
                raise JournalError(
                    f"journal {self.path}: the entry {key!r} cannot be used: {error}; remove it and all "
                    "after it to go on from there, or the file to start anew"
                ) from error

        return await self._call(key, call, lambda value: {"value": value}, recorded)

    async def _call(
        self,
        key: str,
        call: Callable[[], Awaitable[T]],
        pack: Callable[[T], dict[str, Any]],
        again: Callable[[dict[str, Any]], Awaitable[T]],
    ) -> T:
        """Returns `await call()`, recorded with `pack`, or `await again(data)` of the recorded data."""
        turns = self._turns
        if turns is None:
            raise RuntimeError(f"journal {self.path}: `begin` was not called")
        entry = self._recorded.get(key)
        if entry is not None:
            data = entry.data
            if "refused" in data:
                again = _refuse
            return await turns.replay(entry, key, lambda: again(data))
        try:
            result, shared = await turns.make(key, call)
        except PromptTooLongError as error:  # a strategy may handle it
            self._file.write({"key": key, "refused": str(error)} | turns.note())
            raise
        self._file.write({"key": key, "shared": shared} | turns.note() | pack(result))
        return result

    def _give_up(self, turn: int) -> JournalError:
        return JournalError(
            f"journal {self.path}: the search takes another way than the recorded one, which had "
            f"line {turn + 2} next; the strategy or what it is given has changed: remove "
            "the file to start anew, or take another one"
        )

    def _key(self, branch: Branch) -> str:
        key = self._keys[branch]
        count = self._calls[key] = self._calls.get(key, 0) + 1
        return f"{key} {count}"

    # -- the file

    def _take_in(self) -> None:
        """Reads the entries of the file. A file without entries is started anew."""
        for turn, data in enumerate(self._file.records):
            if not _is_entry(data) or data["key"] in self._recorded:
                self._file.close()
                raise self._file.damaged(turn + 2, "is no entry of a journal, or there twice")
            self._recorded[data["key"]] = _entry(turn, data)
        if not self._recorded:
            self._file.restart()


def _is_entry(data: Any) -> bool:
    """Whether it records a step, numbers, a value or a prompt that was too long."""
    if not isinstance(data, dict) or not isinstance(data.get("key"), str):
        return False
    try:
        _entry(0, data)
        if "refused" in data:
            return isinstance(data["refused"], str)
        if "value" in data:  # checked by whoever asked for it
            return True
        if "numbers" in data:
            _floats(data["numbers"])
            return True
        step = _unpack_step(data)
    except (KeyError, TypeError, ValueError):
        return False
    return (
        isinstance(step.text, str)
        and isinstance(step.reason, str)
        and all(type(token) is int for token in step.tokens)
        and len(step.tokens) == len(step.logprobs) == len(step.entropies)
    )


def _floats(values: list[Any]) -> list[float]:
    """Returns the numbers, some of which were written as strings: "nan", "inf" and "-inf"."""
    if not isinstance(values, list) or any(type(value) not in (int, float, str) for value in values):
        raise TypeError(f"expected a list of numbers, got {values!r:.80}")
    return [float(value) for value in values]


def _entry(turn: int, data: dict[str, Any]) -> Entry:
    (tokens, *spent), together, shared = data["spent"], data["together"], data.get("shared", 0)
    under_way, cancelled = _requests(data["under_way"]), _requests(data["cancelled"])
    counts = [tokens, shared, *(count for request in (*under_way, *cancelled) for count in request.hold)]
    if not isinstance(together, bool) or any(type(count) is not int or count < 0 for count in counts):
        raise TypeError(f"expected true or false and counts, got {together!r:.80} and {counts!r:.200}")
    return Entry(turn, data, Spent(tokens, *_floats(spent)), together, under_way, cancelled)


def _requests(rows: list[Any]) -> tuple[UnderWay, ...]:
    requests = []
    for order, (call, path, tokens, resident, shared) in enumerate(rows):
        if not isinstance(call, str) or not isinstance(path, str):
            raise TypeError(f"expected a call and a path, got {call!r:.80} and {path!r:.80}")
        requests.append(UnderWay(call, path, Hold(tokens, resident, shared, order)))
    return tuple(requests)


async def _refuse(data: dict[str, Any]) -> Any:
    raise PromptTooLongError(data["refused"])


def _sampling(params: SamplingParams) -> dict[str, Any]:
    """Returns the parameters as JSON values; a foreign constraint or predicate becomes its name."""
    try:
        return params.to_dict()
    except ValueError:
        named = {"constraint": params.constraint, "stop_when": params.stop_when}
        plain = replace(params, constraint=None, stop_when=None).to_dict()
        return plain | {name: _plain(value) for name, value in named.items() if value is not None}


def _plain(value: object) -> object:
    """Returns an option as a JSON value.

    A list, mapping or dataclass becomes a checksum of its content; a function or another object its name.
    """
    if isinstance(value, (str, bool)):
        return value
    if is_integer(value) or is_real(value):
        return int(value) if is_integer(value) else float(value)
    if (content := _content(value)) is not None:
        return f"{type(value).__name__} {zlib.crc32(json.dumps(content).encode()):08x}"
    return str(getattr(value, "__name__", type(value).__name__))


def _content(value: object) -> list[object] | None:
    """Returns what a list, mapping or dataclass holds, as JSON values; None for another object."""
    if isinstance(value, Mapping):
        return [[name, _plain(value[name])] for name in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [[field.name, _plain(getattr(value, field.name))] for field in fields(value)]
    return None


def _pack_step(step: Step) -> dict[str, Any]:
    data: dict[str, Any] = {
        "text": step.text,
        "tokens": step.tokens,
        "logprobs": step.logprobs,
        "entropies": step.entropies,
        "reason": step.reason,
    }
    if step.top_logprobs:
        data["top_logprobs"] = [list(zip(*top, strict=True)) for top in step.top_logprobs]
    if step.self_certainties:
        data["self_certainties"] = step.self_certainties
    if step.hidden is not None:
        data["hidden"] = base64.b64encode(step.hidden.numpy().astype("<f4").tobytes()).decode()
    return data


def _unpack_step(data: dict[str, Any]) -> Step:
    hidden: Tensor | None = None
    if "hidden" in data:
        hidden = torch.from_numpy(np.frombuffer(base64.b64decode(data["hidden"]), "<f4").copy())
    logprobs, entropies = (tuple(_floats(data[name])) for name in ("logprobs", "entropies"))
    tops = tuple(
        tuple(zip(ids, _floats(numbers), strict=True)) for ids, numbers in data.get("top_logprobs", ())
    )
    return Step(
        data["text"],
        tuple(data["tokens"]),
        logprobs,
        entropies,
        data["reason"],
        hidden,
        tops,
        tuple(_floats(data.get("self_certainties", []))),
    )
