"""A branch without its KV: data that can be written to a file and used to make the branch again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tts_kernels.checks import is_integer, is_real

from .params import SamplingParams
from .prompts import Prompt

_VERSION = 2


@dataclass(frozen=True)
class BranchState:
    """The result of `Branch.snapshot`, for `TreeDecoder.restore`.

    Attributes:
        prompt: the argument of `root`.
        tokens: prompt and everything after it.
        prompt_length, finish_reason, seed, sampling: of the branch.
        logprobs, entropies: one entry per token after the prompt, NaN where unknown.
        steps: (begin, end, reason) of each finished step, positions in `tokens`. Hidden states are not kept.
        scores: one entry per scored step.
        forks: number of `fork` calls so far; the seeds of the next children follow from it.
        fork_positions: where its path was forked, ascending positions in `tokens`.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    prompt_length: int
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    steps: tuple[tuple[int, int, str], ...]
    scores: tuple[float, ...]
    finish_reason: str | None
    seed: int
    forks: int
    fork_positions: tuple[int, ...]
    sampling: SamplingParams

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values: lists, numbers, strings and None; a log-probability of NaN becomes None.

        Raises:
            ValueError: the class of the branch's constraint is not this package's.
        """
        data = asdict(replace(self, sampling=SamplingParams())) | {"sampling": self.sampling.to_dict()}
        for name in ("logprobs", "entropies"):
            data[name] = [None if math.isnan(value) else value for value in data[name]]
        data |= {name: list(data[name]) for name in ("tokens", "scores", "fork_positions")}
        data["steps"] = [list(step) for step in self.steps]
        return {"version": _VERSION, **data}

    @classmethod
    def from_dict(cls, data: object) -> BranchState:
        """Makes the state from the result of `to_dict`, also after a round trip through JSON.

        Raises:
            ValueError: it is of another version, or damaged; the message says where.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"branch state: got {type(data).__name__}, expected an object")
        if data.get("version") != _VERSION:
            raise ValueError(
                f"branch state: got version {data.get('version')!r}, expected {_VERSION}; it was written by "
                "another version of this package"
            )
        values = {name: _read(data, name) for name in (field.name for field in fields(cls))}
        for name in ("logprobs", "entropies"):
            values[name] = tuple(math.nan if value is None else value for value in values[name])
        values["steps"] = tuple((begin, end, reason) for begin, end, reason in values["steps"])
        try:
            values["sampling"] = SamplingParams.from_dict(values["sampling"])
        except (TypeError, ValueError) as cause:
            raise ValueError(f"branch state: sampling: {cause}") from cause
        state = cls(**values)
        state._check()
        return state

    def _check(self) -> None:
        length, after = len(self.tokens), len(self.tokens) - self.prompt_length
        ends = [position for begin, end, _ in self.steps for position in (begin, end)]
        problems = {
            f"prompt_length: got {self.prompt_length}, expected 1 to {length}, the tokens": (
                1 <= self.prompt_length <= length
            ),
            f"logprobs: got {len(self.logprobs)}, expected {after}": len(self.logprobs) == after,
            f"entropies: got {len(self.entropies)}, expected {after}": len(self.entropies) == after,
            f"fork_positions: expected ascending positions from 1 to {length}": (
                list(self.fork_positions) == sorted(set(self.fork_positions))
                and all(1 <= at <= length for at in self.fork_positions)
            ),
            f"steps: expected ascending positions from {self.prompt_length} to {length}": (
                ends == sorted(ends) and all(self.prompt_length <= end <= length for end in ends)
            ),
        }
        for problem, fine in problems.items():
            if not fine:
                raise ValueError(f"branch state: {problem}")


def _read(data: Mapping[str, Any], name: str) -> Any:
    """Returns a field's value, lists as tuples; raises ValueError if it is missing or of another type."""
    kind, fits = _KINDS[name]
    value = data.get(name)
    if name not in data or not fits(value):
        raise ValueError(f"branch state: {name}: got {value!r:.80}, expected {kind}")
    return tuple(value) if isinstance(value, (list, tuple)) and name != "prompt" else value


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(fits, value))


def _step(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(map(is_integer, value[:2]))
        and isinstance(value[2], str)
    )


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "prompt": ("a text, a list of ids or of messages", lambda value: isinstance(value, (str, list, tuple))),
    "tokens": ("a list of ids", _list_of(is_integer)),
    "prompt_length": ("an integer", is_integer),
    "logprobs": ("a list of numbers or null", _list_of(lambda value: value is None or is_real(value))),
    "entropies": ("a list of numbers or null", _list_of(lambda value: value is None or is_real(value))),
    "steps": ("a list of [begin, end, reason]", _list_of(_step)),
    "scores": ("a list of numbers", _list_of(is_real)),
    "finish_reason": ("a text or null", lambda value: value is None or isinstance(value, str)),
    "seed": ("an integer", is_integer),
    "forks": ("an integer", is_integer),
    "fork_positions": ("a list of integers", _list_of(is_integer)),
    "sampling": ("an object", lambda value: isinstance(value, Mapping)),
}
