"""A file of what engine, scorers and tools returned, from which an interrupted search goes on.

A strategy is a function of what its steps, scores and draws come to, and all draws come from seeds. So a
search is resumed by running it again from the start: what the file holds is not sampled or scored again, but
handed out as it was, in the order in which it came. Tokens of recorded steps go through the model once more,
all of a step in one forward, for their KV pages.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
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

SCHEMA, VERSION = "tts-decode/journal", 4


class Journal:
    """The journal of one search, in JSON lines: a header, then an entry for everything that returned.

    Args:
        path: the file. It is created, or replaced.
        resume: goes on with what the file holds, if it exists. A last line that is cut off, as a crash leaves
            it, is dropped.

    The file is locked until `close`, which the end of the search calls. What a call that was cancelled had
    sampled is sampled again in a resumed search; it was paid for.

    Raises:
        JournalError: the file is in use, damaged, of another version, or cannot be read or written; from the
            call of the strategy: it belongs to another search, or there is no space left. What it held stays.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        self._recorded: dict[str, Entry] = {}
        self._file = RecordFile(self.path, SCHEMA, VERSION, resume=resume, error=JournalError)
        self._take_in()
        self._keys: WeakKeyDictionary[Branch, str] = WeakKeyDictionary()  # its place in the search
        self._forks: dict[str, int] = {}  # key of a branch -> forks made of it
        self._calls: dict[str, int] = {}  # key of a branch -> calls made on it
        self._turns: Turns | None = None  # from `begin` on

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
                recorded["sampling"] = defaults | sampling  # parameters that are newer than the file
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
        """The children of one fork."""
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
        """The branch of a further prompt, which is computed again in a replay. key: like no other's."""
        branch = await self._repeated(key, call)
        self._keys[branch] = key
        return branch

    async def repeated_on(self, branch: Branch, call: Callable[[], Awaitable[T]]) -> T:
        """`await call()` on the branch, in a replay too: its result is not kept."""
        return await self._repeated(self._key(branch), call)

    async def _repeated(self, key: str, call: Callable[[], Awaitable[T]]) -> T:
        return await self._call(key, call, lambda _: {"numbers": []}, lambda _: call())

    async def step(self, branch: Branch, sampling: dict[str, Any]) -> Step:
        """`branch.step(**sampling)`, or what it returned."""

        async def again(data: dict[str, Any]) -> Step:
            step = _unpack_step(data)
            if step.tokens or not branch.finished:  # else the branch was finished before
                await branch.replay(step)
            return step

        return await self._call(self._key(branch), lambda: branch.step(**sampling), _pack_step, again)

    async def numbers(
        self, branches: Sequence[Branch], call: Callable[[], Awaitable[list[float]]], *, again: bool = False
    ) -> list[float]:
        """`await call()`, or what it returned. again: it changes a branch, so a replay calls it too."""

        async def recorded(data: dict[str, Any]) -> list[float]:
            if again:
                await call()
            return _floats(data["numbers"])

        key = f"{self._key(branches[0])} x{len(branches)}"
        return await self._call(key, call, lambda numbers: {"numbers": numbers}, recorded)

    async def value(self, key: str, call: Callable[[], Awaitable[T]], read: Callable[[object], T]) -> T:
        """`await call()`, a value that JSON has, or `read` of the one that it returned. key: like no
        other's."""

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
        """`await call()`, recorded as `pack` makes it of the result; or `await again(data)` of what is."""
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
        except PromptTooLongError as error:  # which a strategy may live with
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
        """The entries that the file holds. One that holds none is begun anew."""
        for turn, data in enumerate(self._file.records):
            if not _is_entry(data) or data["key"] in self._recorded:
                self._file.close()
                raise self._file.damaged(turn + 2, "is no entry of a journal, or there twice")
            self._recorded[data["key"]] = _entry(turn, data)
        if not self._recorded:
            self._file.restart()


def _is_entry(data: Any) -> bool:
    """Whether it is of a step, of numbers, of a value or of a prompt that was too long."""
    if not isinstance(data, dict) or not isinstance(data.get("key"), str):
        return False
    try:
        _entry(0, data)
        if "refused" in data:
            return isinstance(data["refused"], str)
        if "value" in data:  # which who asked for it checks
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
    """Numbers, some of which were written as texts: "nan", "inf" and "-inf"."""
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
    """The parameters as JSON holds them: of a constraint or a predicate that is none of ours the name."""
    try:
        return params.to_dict()
    except ValueError:
        named = {"constraint": params.constraint, "stop_when": params.stop_when}
        plain = replace(params, constraint=None, stop_when=None).to_dict()
        return plain | {name: _plain(value) for name, value in named.items() if value is not None}


def _plain(value: object) -> object:
    """An option as JSON holds it: of functions and other objects the name."""
    if isinstance(value, (str, bool)):
        return value
    if is_integer(value) or is_real(value):
        return int(value) if is_integer(value) else float(value)
    return str(getattr(value, "__name__", type(value).__name__))


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
