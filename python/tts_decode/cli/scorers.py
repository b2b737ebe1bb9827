"""The scorers that guide searches, by their names in `--scorer`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cost.forward import StepCost
from ..decoding.decoder import TreeDecoder
from ..decoding.kv_budget import KVBudget
from ..rewards import (
    READERS,
    RewardModel,
    Scorer,
    load_reward_model,
    mean_logprob,
    mean_probability,
    self_evaluation,
    verifier,
)
from ..rewards.self_evaluation import chat_question
from ..search import Strategy
from ..tasks import Task
from .errors import UsageError, usage_errors
from .functions import load_function, names_function

NAMES = ("mean_probability", "mean_logprob", "self_evaluation", "verifier")


def check_scorer(name: str | None) -> None:
    """Raises UsageError if the name is no scorer; reward models are checked when they are loaded."""
    if name is None or name in NAMES:
        return
    if names_function(name):
        load_function(name, "--scorer", "branches or text")
        return
    reader, place = _reward_model(name)
    if reader is None and place.endswith(".py"):
        raise UsageError(f"--scorer: got {name!r}, expected the function's name behind it, as in {name}:NAME")
    if reader is None and "/" not in place and (not place or not Path(place).is_dir()):
        raise UsageError(
            f"--scorer: got {name!r}, expected {', '.join(NAMES)}, READER:FOLDER, a folder, OWNER/NAME "
            "on the hub or FILE.py:NAME"
        )
    if reader is not None:
        check_reader(reader)
    if not place:
        raise UsageError(f"--scorer: got {name!r}, expected READER:FOLDER")


def is_reward_model(name: str | None) -> bool:
    """Whether a checked scorer is a separate model."""
    return name is not None and name not in NAMES and not names_function(name)


def _reward_model(name: str) -> tuple[str | None, str]:
    """Returns the reader, None if the model has to name it, and the folder or hub id."""
    reader, colon, place = name.partition(":")
    return (reader, place) if colon else (None, name)


def check_reader(name: str) -> None:
    """Raises UsageError if the name is no reader of reward models."""
    if name not in READERS:
        raise UsageError(f"--scorer: got the reader {name!r}, expected one of {', '.join(READERS)}")


class ScorerOf:
    """Makes the scorer `name` for each task; None: mean_probability, only if a strategy needs a scorer.

    Without a reward model it can be pickled, including the code of a user's function.

    reward_model: the model for a name such as "reader:folder".
    """

    def __init__(
        self, name: str | None, *, chat: bool = True, reward_model: RewardModel | None = None
    ) -> None:
        check_scorer(name)
        self.name = name
        self._chat = chat
        self._reward_model = reward_model
        named = name is not None and names_function(name)
        self._function = load_function(name, "--scorer", "branches or text") if name and named else None

    def argument(self, strategy: Strategy[...], task: Task, decoder: TreeDecoder) -> dict[str, Scorer]:
        """Returns the strategy's `scorer`, if it needs one or the user named one that it can take."""
        if strategy.needs_scorer or (self.name is not None and "scorer" in strategy.parameters):
            return {"scorer": self._make(task, decoder.tokenizer)}
        return {}

    @property
    def cost(self) -> StepCost:
        """Cost of everything the reward model has read; the decoder counts the policy's own reading."""
        return StepCost() if self._reward_model is None else self._reward_model.decoder.stats().cost

    def close(self) -> None:
        if self._reward_model is not None:
            self._reward_model.close()

    def _make(self, task: Task, tokenizer: Any) -> Scorer:
        if self._reward_model is not None:
            return self._reward_model
        if self._function is not None:
            return _own(self._function)
        if self.name == "self_evaluation":
            asks = self._chat and tokenizer.chat_template
            return self_evaluation(chat_question(tokenizer)) if asks else self_evaluation()
        if self.name == "verifier":
            if task.verify is None:
                raise ValueError(f"--scorer verifier: task {task.name} has no answer to compare with")
            return verifier(task.verify, threaded=task.waits)
        return mean_logprob() if self.name == "mean_logprob" else mean_probability()


def open_scorer(
    name: str | None, *, chat: bool = True, device: str = "cpu", kv_bytes: int | KVBudget | None = None
) -> ScorerOf:
    """Loads the reward model if the name has one. kv_bytes: of its decoder."""
    reward_model = None
    if name is not None and is_reward_model(name):
        reader, place = _reward_model(name)
        with usage_errors():
            reward_model = load_reward_model(place, reader, device=device, kv_bytes=kv_bytes)
    return ScorerOf(name, chat=chat, reward_model=reward_model)


def _own(function: Callable[..., Any]) -> Scorer:
    """Returns an async function of branches unchanged; any other judges texts, each in a thread."""
    called = function if inspect.isroutine(function) else type(function).__call__
    return function if inspect.iscoroutinefunction(called) else verifier(function, threaded=True)
