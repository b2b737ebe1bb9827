"""The strategies by name, and the options that each takes, for commands and configuration files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tts_decode.search.beam_search import beam_search
from tts_decode.search.best_of_n import best_of_n
from tts_decode.search.ets import ets
from tts_decode.search.lm_beam_search import lm_beam_search
from tts_decode.search.rebase import rebase
from tts_decode.search.result import SearchResult
from tts_decode.search.self_consistency import self_consistency


@dataclass(frozen=True)
class Strategy:
    """A strategy `run(root, **options)` under its `name`, with a line on what it does."""

    name: str
    run: Callable[..., Coroutine[Any, Any, SearchResult]]
    summary: str

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of `run`."""
        parameters = inspect.signature(self.run).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def options(self) -> dict[str, object]:
        """Options that are plain numbers, strings or truth values, with their defaults.

        `temperature` is among them with default None: it then comes from the root's sampling parameters.
        """
        return {
            name: p.default
            for name, p in self.parameters.items()
            if name == "temperature" or isinstance(p.default, (int, float, str, bool))
        }

    @property
    def needs_scorer(self) -> bool:
        scorer = self.parameters.get("scorer")
        return scorer is not None and scorer.default is inspect.Parameter.empty


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("best_of_n", best_of_n, "n independent answers, the best-scored one wins"),
        Strategy("self_consistency", self_consistency, "n independent answers, a vote decides"),
        Strategy("beam_search", beam_search, "n beams, the best n/beam_width go on at each step"),
        Strategy(
            "lm_beam_search", lm_beam_search, "the likeliest text by token-level beam search, no scorer"
        ),
        Strategy("rebase", rebase, "tree search, continuations shared out by softmax of the scores"),
        Strategy("ets", ets, "REBASE on the leaves that a KV cost model keeps"),
    )
}


def get_strategy(name: str) -> Strategy:
    """The strategy called `name`; ValueError that lists the known ones if there is none."""
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
