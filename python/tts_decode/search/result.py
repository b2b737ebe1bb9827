"""What a search hands back: plain data, free of branches and tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tts_decode.search.tree import Node


@dataclass(frozen=True)
class Candidate:
    """One continuation of the prompt that the search arrived at.

    text, tokens   what was generated after the prompt; the tokens include a closing end-of-sequence token.
    logprob        sum of the tokens' log-probabilities, nats.
    score          what the strategy ranks candidates by, None if it did not score this one.
    scores         the scorer's value after each scored step.
    finish_reason  why the branch ended; None or "budget" if the search ended first.
    node           id of its last node in the tree.
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    score: float | None
    scores: tuple[float, ...]
    finish_reason: str | None
    node: int

    @property
    def complete(self) -> bool:
        """Whether the branch came to its own end, rather than being cut short with the search."""
        return self.finish_reason not in (None, "budget")


@dataclass(frozen=True)
class Selection:
    """One decision on which branches go on.

    width, kept    branches to choose from, and how many of them go on.
    kv_tokens      tokens of those branches with every shared token once, prompt included: ETS's own KV
                   counter, but with the prompt's true length (its code counts the prompt as 2 or 3 tokens).
    kept_tokens    the same over the branches that go on.
    resident_bytes KV bytes that the decoder held after the decision, other searches in flight included.
    """

    width: int
    kept: int
    kv_tokens: int
    kept_tokens: int
    resident_bytes: int


@dataclass(frozen=True)
class SearchStats:
    """What a search cost.

    seconds           wall time from the strategy's start to its end.
    generated_tokens  sampled tokens, pruned branches included.
    peak_bytes        largest KV memory of the decoder seen at the search's steps, other searches included.
    kv_tokens         sum of `Selection.kv_tokens`: the figure that ETS's code prints as total KV cache size.
    """

    seconds: float
    generated_tokens: int
    peak_bytes: int
    selections: tuple[Selection, ...]

    @property
    def kv_tokens(self) -> int:
        return sum(selection.kv_tokens for selection in self.selections)


@dataclass(frozen=True)
class SearchResult:
    """candidates: in the order in which they ended. tree: nodes by id, the prompt first, parents before
    children. votes: answers and their votes, most voted first, for strategies that vote."""

    strategy: str
    best: Candidate
    candidates: tuple[Candidate, ...]
    tree: tuple[Node, ...]
    stats: SearchStats
    votes: dict[str, float] | None = None

    @property
    def answer(self) -> str:
        """Text of the chosen candidate."""
        return self.best.text

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready lists, dicts, strings and numbers."""
        result = asdict(self)
        result["answer"] = self.answer
        result["stats"]["kv_tokens"] = self.stats.kv_tokens
        return result
