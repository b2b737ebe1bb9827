"""A file of what engine and scorers returned, from which an interrupted search goes on.

A strategy is a function of what its steps, scores and draws come to, and all draws come from seeds. So a
search is resumed by running it again from the start: what the file holds is not sampled or scored again, but
handed out as it was, in the order in which it came. Tokens of recorded steps go through the model once more,
all of a step in one forward, for their KV pages.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..core.step import Step
from ..errors import JournalError
from ..records.record_file import RecordFile
from ..records.strict_json import dumps, loads
from .resuming import Moment, Timeline

if TYPE_CHECKING:
    from ..core.interfaces import Branch

T = TypeVar("T")

SCHEMA, VERSION = "tts-decode/journal", 2
_PATIENCE = 30.0  # seconds without any progress after which a replay is given up


class _Entry(NamedTuple):
    turn: int  # its place in the file
    data: dict[str, Any]
    moment: Moment


class Journal:
    """The journal of one search, in JSON lines: a header, then an entry for everything that returned.

    Args:
        path: the file. It is created, or replaced.
        resume: goes on with what the file holds, if it exists. A last line that is cut off, as a crash leaves
            it, is dropped.

    The file is locked until `close`, which the end of the search calls. What a cancelled call had sampled is
    not kept: in a resumed search it is neither in the tree nor paid for.

    Raises:
        JournalError: the file is in use, damaged, of another version, or cannot be read or written; from the
            call of the strategy: it belongs to another search, or there is no space left. What it held stays.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        self._recorded: dict[str, _Entry] = {}
        self._file = RecordFile(self.path, SCHEMA, VERSION, resume=resume, error=JournalError)
        self._take_in()
        self._keys: WeakKeyDictionary[Branch, str] = WeakKeyDictionary()  # its place in the search
        self._forks: dict[str, int] = {}  # key of a branch -> forks made of it
        self._calls: dict[str, int] = {}  # key of a branch -> calls made on it
        self._turn = 0  # next entry to hand out
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}  # callers by the turn that they wait for
        self._passed: set[int] = set()  # entries that were handed out, or whose caller was cancelled
        self._in_flight = 0  # recorded calls that the engine is still working on
        self._timeline: Timeline | None = None  # from `begin` on

    # -- the search, as it tells who is who

    def begin(self, strategy: str, options: Mapping[str, object], root: Branch) -> None:
        plain = {k: v if isinstance(v, (int, float, str, bool)) else _name(v) for k, v in options.items()}
        header = {
            "strategy": strategy,
            "options": plain,
            "sampling": asdict(root.sampling),
            "seed": root.seed,
            "prompt": root.full_text,
        }
        if self._file.header is None:
            self._file.write(header)
        else:
            recorded = self._file.header
            for name, value in loads(dumps(header).encode()).items():
                if recorded.get(name) != value:
                    raise JournalError(
                        f"journal {self.path} belongs to another search: its {name} is "
                        f"{recorded.get(name)!r:.200}, here it is {value!r:.200}; "
                        "remove it to start anew, or take another file"
                    )
        self._timeline = Timeline(root, [entry.moment for entry in self._recorded.values()])
        self._keys[root] = "0"
        self._call_next()

    def follow(self, children: Sequence[Branch], parent: Branch) -> None:
        """The children of one fork."""
        key = self._keys[parent]
        count = self._forks[key] = self._forks.get(key, 0) + 1
        for i, child in enumerate(children):
            self._keys[child] = f"{key}.{count}-{i}"

    def close(self) -> None:
        if self._timeline is not None:
            self._timeline.close()
        self._file.close()

    # -- calls

    async def root(self, key: str, call: Callable[[], Awaitable[Branch]]) -> Branch:
        """The branch of a further prompt, which is computed again in a replay. key: like no other's."""
        entry = self._recorded.get(key)
        if entry is None:
            branch = await self._live(key, call, lambda _: {"numbers": []})
        else:
            async with self._handing_out(entry):
                branch = await call()
        self._keys[branch] = key
        return branch

    async def step(self, branch: Branch, sampling: dict[str, Any]) -> Step:
        """`branch.step(**sampling)`, or what it returned."""
        key = self._key(branch)
        entry = self._recorded.get(key)
        if entry is None:
            step = await self._live(key, lambda: branch.step(**sampling), _pack_step)
        else:
            step = _unpack_step(entry.data)
            async with self._handing_out(entry):
                await branch.replay(step)
        return step

    async def numbers(
        self, branches: Sequence[Branch], call: Callable[[], Awaitable[list[float]]], *, again: bool = False
    ) -> list[float]:
        """`await call()`, or what it returned. again: it changes a branch, so a replay calls it too."""
        key = f"{self._key(branches[0])} x{len(branches)}"
        entry = self._recorded.get(key)
        if entry is None:
            return await self._live(key, call, lambda numbers: {"numbers": numbers})
        async with self._handing_out(entry):
            if again:
                await call()
        return _floats(entry.data["numbers"])

    # -- order

    async def _live(
        self, key: str, call: Callable[[], Awaitable[T]], pack: Callable[[T], dict[str, Any]]
    ) -> T:
        """A call that is not recorded: it was in progress, or further on, when the search was interrupted."""
        await self._reach(len(self._recorded))
        timeline = self._begun()
        await timeline.start()
        result = await call()
        self._file.write({"key": key, "moment": timeline.now()} | pack(result))
        return result

    @asynccontextmanager
    async def _handing_out(self, entry: _Entry) -> AsyncIterator[None]:
        """For the work that a recorded call still has; ends when it is the entry's turn."""
        try:
            self._in_flight += 1
            try:
                yield
            finally:
                self._in_flight -= 1
            await self._reach(entry.turn)
            self._begun().replayed(entry.moment)
        finally:
            self._passed.add(entry.turn)
            self._call_next()

    async def _reach(self, turn: int) -> None:
        """Waits until everything recorded before that turn was handed out."""
        call = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(turn, []).append(call)
        self._call_next()
        try:
            while not call.done():
                before = self._turn
                await asyncio.wait([call], timeout=_PATIENCE)
                if not call.done() and self._turn == before and not self._in_flight:
                    raise JournalError(
                        f"journal {self.path}: the search takes another way than the recorded one, which had "
                        f"line {before + 2} next; the strategy or what it is given has changed: remove "
                        "the file to start anew, or take another one"
                    )
        finally:
            self._waiting[turn].remove(call)

    def _call_next(self) -> None:
        """Wakes those whose turn it is. The turn passes on when that one goes on, not before: so what
        callers do next they do in the recorded order."""
        while self._turn in self._passed:
            self._turn += 1
        for call in self._waiting.get(self._turn, ()):
            if not call.done():
                call.set_result(None)

    def _begun(self) -> Timeline:
        if self._timeline is None:
            raise RuntimeError(f"journal {self.path}: `begin` was not called")
        return self._timeline

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
            self._recorded[data["key"]] = _Entry(turn, data, _moment(data))
        if not self._recorded:
            self._file.restart()


def _is_entry(data: Any) -> bool:
    """Whether it is of a step, or of numbers."""
    if not isinstance(data, dict) or not isinstance(data.get("key"), str):
        return False
    try:
        _moment(data)
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


def _moment(data: dict[str, Any]) -> Moment:
    forwards, tokens, cost, seconds = data["moment"]
    if not type(forwards) is type(tokens) is int:
        raise TypeError(f"expected numbers of forwards and tokens, got {forwards!r:.80} and {tokens!r:.80}")
    return Moment(forwards, tokens, *_floats([cost, seconds]))


def _name(value: object) -> str:
    return str(getattr(value, "__name__", type(value).__name__))


def _pack_step(step: Step) -> dict[str, Any]:
    data: dict[str, Any] = {
        "text": step.text,
        "tokens": step.tokens,
        "logprobs": step.logprobs,
        "entropies": step.entropies,
        "reason": step.reason,
    }
    if step.hidden is not None:
        data["hidden"] = base64.b64encode(step.hidden.numpy().astype("<f4").tobytes()).decode()
    return data


def _unpack_step(data: dict[str, Any]) -> Step:
    hidden: Tensor | None = None
    if "hidden" in data:
        hidden = torch.from_numpy(np.frombuffer(base64.b64decode(data["hidden"]), "<f4").copy())
    logprobs, entropies = (tuple(_floats(data[name])) for name in ("logprobs", "entropies"))
    return Step(data["text"], tuple(data["tokens"]), logprobs, entropies, data["reason"], hidden)
