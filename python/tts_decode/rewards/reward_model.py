"""A reward model that reads only new text: it has its own KV on a tree that mirrors the policy's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.running import gather
from ..errors import StaleKVError
from ..model.weights import weights_of
from ..select import aggregation
from .readers import Reader, reader_named
from .readouts import Head, ReadOut
from .templates import Positions, Reading

if TYPE_CHECKING:
    from ..core.interfaces import Branch
    from ..decoding.branch import TreeBranch
    from ..decoding.decoder import TreeDecoder


@dataclass(frozen=True)
class Mirror:
    """What the reward model has read of one branch of the policy.

    Attributes:
        rows: hidden states at the positions read so far.
        scores: of steps, by their positions.
    """

    branch: TreeBranch  # of the reward model's tree; released when the mirror is dropped
    ids: list[int]  # all tokens that it holds
    rows: Mapping[int, Tensor]
    scores: Mapping[Positions, float]


class RewardModel:
    """Scorer: a process or outcome reward model, read as `reader` says.

    Each branch of the policy that was scored has a mirror in the reward model's own tree. To score a branch,
    the mirror of its nearest scored ancestor (or its own) is forked where the token ids of the two texts
    diverge, and the rest is read. The ids are always those of the whole text, so the scores equal those of a
    plain forward over it, even if a tokenizer splits a step's end differently once the next step is present.
    All branches of a call, and of concurrent calls, are read in one batch.

    A mirror lives as long as the policy's branch, or one forked from it, is referenced, released or not: the
    children of a released parent start from it. `close`, or leaving `with`, drops all mirrors at once. After
    that, or after its weights changed, a reward model reads from the start again.

    Args:
        decoder: the reward model, with its own memory or one `KVBudget` shared with the policy. It may be the
            policy's own decoder.
        reader: a `Reader` or the name of a shipped one.
        agg_strategy: how the scores of a branch's steps become the returned one, as named in
            `select.aggregation`. Searches append results to `branch.scores` and aggregate those: leave it at
            "last" for them. "whole": the answer so far is read as one step.
        question: the question of every branch; default: the branch's prompt or, in a chat, the user's last
            message.
        head: a head that is not part of the decoder's model, from hidden states to classes or a value.

    Attributes:
        tokens_read: tokens that the reward model was fed. tokens_full: tokens it would have been fed if it
            had read the whole text for every score.

    Raises:
        TypeError, ValueError: model, tokenizer and reader do not fit together: the tag is not a token, there
            is no chat template, the model lacks the head, or the class does not exist.
    """

    def __init__(
        self,
        decoder: TreeDecoder,
        reader: str | Reader,
        *,
        agg_strategy: str = "last",
        question: str | None = None,
        head: torch.nn.Module | None = None,
    ) -> None:
        self.decoder = decoder
        self.reader = reader_named(reader)
        self.tokens_read = 0
        self.tokens_full = 0
        self.__name__ = f"RewardModel({self.reader.name})"  # the scorer's name in errors
        self._question = question
        self._whole = agg_strategy == "whole"
        self._aggregate = aggregation(agg_strategy)
        self._mirrors: WeakKeyDictionary[Branch, Mirror] = WeakKeyDictionary()
        self._own_head = head
        self._epoch = self._weights_epoch()
        self._head = self._bind()
        self.reader.template(decoder.tokenizer, "1 + 1 = ?", ["2"])  # fails now if the tokenizer does not fit

    async def __call__(self, branches: Sequence[Branch]) -> list[float]:
        return [self._aggregate(scores) for scores in await self.step_scores(branches)]

    async def step_scores(self, branches: Sequence[Branch]) -> list[list[float]]:
        """Returns, for each branch, the scores of its steps; one for readers that read the answer whole.

        Steps are those of `Branch.steps`; text forced between them belongs to the next step, and a step
        without text to the previous one. An answer without text is one empty step.

        Raises:
            ValueError: a text is longer than the reward model allows, or a score is not finite.
            OutOfPagesError: no page is left for the reward model.
            StaleKVError: the reward model's weights changed while it read.
        """
        epoch = self._weights_epoch()
        if epoch != self._epoch:
            self.close()
            self._epoch, self._head = epoch, self._bind()
        readings = [self._reading(branch) for branch in branches]
        lacking = {_top(branch): i for i, branch in enumerate(branches) if self._nearest(branch) is None}
        await gather(self._begin(branches[i], readings[i]) for i in lacking.values())
        scores = await gather(map(self._scores, branches, readings))
        if self._weights_epoch() != epoch:
            raise StaleKVError(
                f"{self.__name__}: its weights changed while it read: score the branches again"
            )
        return scores

    def close(self) -> None:
        """Releases all mirrors; later calls read from the start."""
        self._mirrors.clear()

    def __enter__(self) -> RewardModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bind(self) -> Head:
        """Returns the read-out, which has a copy of the head's weights."""
        readout = self.reader.readout
        if isinstance(readout, ReadOut):
            return readout.bind(self.decoder.model, self.decoder.tokenizer, self._own_head)
        return readout

    def _weights_epoch(self) -> tuple[int, ...]:
        """Returns a value that differs after each change of the weights, including the head's."""
        heads = [] if self._own_head is None else [weights_of(self._own_head)]
        return (self.decoder.weights_epoch, *(head.check() for head in heads))

    def _reading(self, branch: Branch) -> Reading:
        """Returns the whole text of a branch as the reward model reads it, checked."""
        steps = step_texts(branch)
        question = branch.question if self._question is None else self._question
        if self._whole:
            steps = ["".join(steps)]
        reading = self.reader.template(self.decoder.tokenizer, question, steps)
        positions = [position for step in reading.positions for position in step]
        if not positions or not all(0 < position < len(reading.ids) for position in positions):
            raise ValueError(
                f"reader {self.reader.name}: its template gave the positions {reading.positions} for "
                f"{len(reading.ids)} tokens; expected some in 1..{len(reading.ids) - 1}"
            )
        limit = self.decoder.max_positions
        if limit is not None and len(reading.ids) > limit:
            raise ValueError(
                f"reader {self.reader.name}: branch {branch.id} is {len(reading.ids)} tokens of the reward "
                f"model, which allows {limit}: lower max_tokens of the search, or take another reward model"
            )
        return reading

    def _nearest(self, branch: Branch | None) -> Mirror | None:
        """Returns the mirror, with current weights, of a branch or of its nearest ancestor that has one."""
        while branch is not None:
            mirror = self._mirrors.get(branch)
            if mirror is not None and not mirror.branch.stale:
                return mirror
            branch = branch.parent
        return None

    async def _begin(self, branch: Branch, reading: Reading) -> None:
        """Mirrors the root of a branch's tree: what the branch's text shares with an answer without text."""
        question = branch.question if self._question is None else self._question
        empty = self.reader.template(self.decoder.tokenizer, question, [""])
        shared = reading.ids[: max(1, _common(reading.ids, empty.ids))]
        root = await self.decoder.root(shared)
        self.tokens_read += len(shared)
        self._mirrors[_top(branch)] = Mirror(root, shared, {}, {})

    async def _scores(self, branch: Branch, reading: Reading) -> list[float]:
        ids, steps = reading.ids, reading.positions
        self.tokens_full += len(ids)
        while (mirror := self._nearest(branch)) is None:  # `close` was called meanwhile
            await self._begin(branch, reading)
        common = _common(mirror.ids, ids)
        scores = {step: score for step, score in mirror.scores.items() if step[-1] < common}
        rows = {position: row for position, row in mirror.rows.items() if position < common}
        fresh = [step for step in steps if step not in scores]
        if fresh:
            wanted = sorted({position for step in fresh for position in step} - rows.keys())
            child, hidden = await self._read(mirror, ids, min([common, *wanted]), wanted)
            rows.update(zip(wanted, hidden, strict=True))
            try:
                scores.update(self._score(branch, steps, fresh, rows))
            except BaseException:
                child.release()
                raise
            self._mirrors[branch] = Mirror(child, ids, rows, scores)
        return [scores[step] for step in steps]

    def _score(
        self,
        branch: Branch,
        steps: Sequence[Positions],
        fresh: Sequence[Positions],
        rows: Mapping[int, Tensor],
    ) -> dict[Positions, float]:
        """Returns the checked scores of `fresh`, which are some of the steps of the branch."""
        states = torch.stack([torch.stack([rows[position] for position in step]) for step in fresh])
        values = self._head(states)
        if values.shape != (len(fresh),):
            raise ValueError(
                f"reader {self.reader.name}: its read-out made {list(values.shape)} of {list(states.shape)}; "
                f"expected [{len(fresh)}], one score a step"
            )
        scores = dict(zip(fresh, values.tolist(), strict=True))
        for step, score in scores.items():
            if not math.isfinite(score):
                raise ValueError(
                    f"reader {self.reader.name} gave step {steps.index(step) + 1} of branch {branch.id} the "
                    f"score {score}; expected a finite number"
                )
        return scores

    async def _read(
        self, mirror: Mirror, ids: list[int], keep: int, wanted: list[int]
    ) -> tuple[TreeBranch, Tensor]:
        """Returns a new branch with `ids`, the first `keep` the mirror's, and states [len(wanted),
        hidden]."""
        if keep:
            (child,) = mirror.branch.fork(1, at=keep)
            child.parent = None  # a parent would keep the pages of a dropped mirror
        else:
            child = await self.decoder.root(ids[:1])
            keep = 1
        resident = child.kv_length
        try:
            hidden = await child.read(ids[keep:], [position - keep for position in wanted])
        except BaseException:
            child.release()
            raise
        self.tokens_read += len(ids) - resident
        return child, hidden


def step_texts(branch: Branch) -> list[str]:
    """Returns the text after the prompt, cut after each step; joined, it is `branch.text`.

    Forced text goes with the next step, or is a last step; blank text goes with the previous step. Without
    text it is one empty step.
    """
    text = branch.text
    ends = [0]
    for step in branch.steps:
        part = step.text.strip("\ufffd")  # from a character of which the step has only a part
        found = text.find(part, ends[-1])
        if found >= 0:
            ends.append(found + len(part))
    pieces = [""]
    for begin, end in pairwise([*ends, len(text)]):
        piece = text[begin:end]
        if pieces[-1].strip() and piece.strip():
            pieces.append(piece)
        else:
            pieces[-1] += piece
    return pieces


def _top(branch: Branch) -> Branch:
    while branch.parent is not None:
        branch = branch.parent
    return branch


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the length of the common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])
