"""A search's result: plain data, free of branches and tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from ..records.plain_data import MAY_LACK, read_as
from ..records.strict_json import finite
from .tree import Node

SCHEMA, VERSION = "tts-decode/search-result", 2
"""Name and version of the format of `SearchResult.to_dict`; docs/results.md lists its fields."""


@dataclass(frozen=True)
class Candidate:
    """One continuation of the prompt that the search arrived at.

    Attributes:
        text, tokens: what was generated after the prompt; the tokens include a closing end-of-sequence token.
        logprob: sum of the tokens' log-probabilities, nats.
        score: what the strategy ranks candidates by; None if it did not score this one.
        scores: the scorer's value after each scored step.
        finish_reason: why the branch ended; None or "budget" if the search ended first.
        node: id of its last node in the tree.
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
        """Whether the branch reached its own end, rather than being cut short with the search."""
        return self.finish_reason not in (None, "budget")


@dataclass(frozen=True)
class Selection:
    """One decision on which branches continue.

    Attributes:
        width, kept: branches to choose from, and how many of them continue.
        kv_tokens: tokens of those branches, counting shared ones once, prompt included: ETS's own KV counter,
            but with the prompt's true length (its code counts the prompt as 2 or 3 tokens).
        kept_tokens: the same for the branches that continue.
        resident_bytes: KV bytes that the decoder held after the decision, including other running searches.
    """

    width: int
    kept: int
    kv_tokens: int
    kept_tokens: int
    resident_bytes: int


@dataclass(frozen=True)
class KVSample:
    """What the branches of one search, including its root, held at one moment.

    Attributes:
        seconds: since the search began.
        branches: number of branches.
        logical_tokens: their tokens, counted per branch.
        resident_bytes: bytes of their distinct KV pages, in all decoders that they belong to.
    """

    seconds: float
    branches: int
    logical_tokens: int
    resident_bytes: int


@dataclass(frozen=True)
class SearchStats:
    """What a search cost.

    Attributes:
        seconds: wall-clock time from the strategy's start to its end.
        generated_tokens: sampled tokens, including those of pruned branches.
        memory: what its branches held, at the end of each step and after each decision.
        selections: its decisions on which branches continue.
        page_size, page_bytes: tokens and bytes of a KV page of the root's decoder; 0 if there are no pages,
            and in older files.
        kv_tokens: sum of `Selection.kv_tokens`: the figure that ETS's code prints as total KV cache size.
    """

    seconds: float
    generated_tokens: int
    memory: tuple[KVSample, ...] = ()
    selections: tuple[Selection, ...] = ()
    page_size: int = field(default=0, metadata=MAY_LACK)
    page_bytes: int = field(default=0, metadata=MAY_LACK)

    @property
    def kv_tokens(self) -> int:
        return sum(selection.kv_tokens for selection in self.selections)

    @property
    def peak_bytes(self) -> int:
        """Most KV bytes that the search's own branches held."""
        return max((sample.resident_bytes for sample in self.memory), default=0)

    @property
    def mean_bytes(self) -> float:
        """KV bytes of the search's own branches, averaged over its time.

        A sample represents the time since the previous one.
        """
        total = before = 0.0
        for sample in self.memory:
            total += (sample.seconds - before) * sample.resident_bytes
            before = sample.seconds
        return total / before if before else float(self.peak_bytes)


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        candidates: in the order in which they ended.
        tree: nodes by id, the prompt first, parents before children.
        votes: answers and their votes, most voted first: of the strategy's own vote, otherwise as its
            `decide_by` counts them; None only in files of older versions.
        stopped: why the search, or a line of it, ended early (the budget is used up, a scorer failed, no
            position or KV page was left); None if it reached its own end.
    """

    strategy: str
    best: Candidate
    candidates: tuple[Candidate, ...]
    tree: tuple[Node, ...]
    stats: SearchStats
    votes: dict[str, float] | None = None
    stopped: str | None = None

    @property
    def answer(self) -> str:
        """Text of the chosen candidate."""
        return self.best.text

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values.

        A number that JSON lacks becomes None: an infinity, or NaN for a value that the engine did not report.
        """
        result: dict[str, Any] = {"schema": SCHEMA, "version": VERSION} | asdict(self)
        result["answer"] = self.answer
        for name in _DERIVED:
            result["stats"][name] = getattr(self.stats, name)
        ready: dict[str, Any] = finite(result)
        return ready

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SearchResult:
        """Makes the result from `to_dict`.

        Raises ValueError, which says where, for a field that is missing, unknown or of another type, and for
        nodes that are missing or out of order.
        """
        if not isinstance(data, dict):
            raise ValueError(f"result: got {data!r:.80}, expected an object")
        known = {name: value for name, value in data.items() if name not in ("schema", "version", "answer")}
        if isinstance(stats := known.get("stats"), dict):
            known["stats"] = {name: value for name, value in stats.items() if name not in _DERIVED}
        result: SearchResult = read_as(cls, known, "result", untold=_UNTOLD)
        result._check_nodes()
        return result

    def _check_nodes(self) -> None:
        for i, node in enumerate(self.tree):
            parents = self.tree[node.parent].tokens if 0 <= node.parent < i else ()
            if node.id != i or not -1 <= node.parent < i or not 0 <= (node.at or 0) <= len(parents):
                raise ValueError(
                    f"result.tree[{i}]: got node {node.id} below {node.parent} at {node.at}, expected "
                    f"node {i} below one of those before it"
                )
            if node.ends and not (
                len(node.ends) == len(node.tokens)
                and node.ends[-1] == len(node.text)
                and all(a <= b for a, b in pairwise((0, *node.ends)))
            ):
                raise ValueError(
                    f"result.tree[{i}].ends: got {node.ends!r:.80}, expected one a token, ascending, up to "
                    f"the text's {len(node.text)} characters"
                )
        ends = [self.best.node, *(candidate.node for candidate in self.candidates)]
        sources = [source for node in self.tree for source in node.sources]
        for end in (*ends, *sources):
            if not 0 <= end < len(self.tree):
                raise ValueError(f"result: got node {end}, expected one of the tree's {len(self.tree)}")


_DERIVED = ("kv_tokens", "peak_bytes", "mean_bytes")  # of SearchStats, written for readers of the file


_UNTOLD = ("logprobs", "entropies", "logprob", "scores", "votes")  # None in a file means NaN
