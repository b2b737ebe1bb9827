"""The texts of the self-check, and the steps in which a decoder computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tts_kernels import KVTree

from ..host_steps import StepInputs

NUM_PAGES = 16  # more than the steps need
PAGE_SIZE = 16
_LOWS, _LOW = 3, 17  # texts that begin at position 0, and their number of tokens
_HIGH = 5  # tokens of the one at high positions
_FORKS = {1: 10, 2: 12}  # low text -> tokens that it shares with text 0
_TRUNCATED = 7  # tokens that the branch on text 1 keeps, before it continues like text 0
_MARGIN = 16  # last positions of a model that stay unused


@dataclass(frozen=True)
class CheckStep:
    """A step of the check.

    inputs: of the step. source: int64 [T], its tokens' numbers in the program. places: the step's name and
    each token's position, for messages.
    """

    inputs: StepInputs
    source: Tensor
    places: list[tuple[str, int]]


class CheckProgram:
    """Random texts, three that share prefixes from position 0 on and one at high positions, and their steps.

    Tokens are numbered text by text, those at high positions last.

    Attributes:
        low: int64 [3, 17], texts at positions 0, 1, ...
        high: int64 [1, 5], at `high_positions` [1, 5].
        steps: a chunk of a prompt; its second chunk beside ragged branches that were forked in the middle of
            a page; after a truncation, a decode step that begins a page. The text at high positions is in the
            first two.
        logit_rows: int64, positions of the low texts whose logits are compared.
        positions: int64, of each token.
        source, places: those of all steps, concatenated.
        rows: tokens of all steps whose logits are compared.
        logit_index: for these rows, the low text and the index among `logit_rows`.
    """

    def __init__(
        self, vocab_size: int, avoid: set[int], max_positions: int | None, chunks: set[int] | None = None
    ) -> None:
        """Makes the texts and their steps.

        avoid: ids with a meaning to the model, such as padding. chunks: sizes of the chunks of tokens within
        which some layers attend.
        """
        generator = torch.Generator().manual_seed(0)
        usable = torch.arange(min(vocab_size, 1 << 16))
        usable = usable[~torch.isin(usable, torch.tensor(sorted(avoid), dtype=torch.long))]
        drawn = usable[torch.randint(len(usable), (_LOWS * _LOW + _HIGH,), generator=generator)]
        self.low, self.high = drawn[: _LOWS * _LOW].view(_LOWS, _LOW), drawn[_LOWS * _LOW :][None]
        for text, shared in _FORKS.items():
            self.low[text, :shared] = self.low[0, :shared]
        first = 0 if max_positions is None else max(0, max_positions - _MARGIN)
        # Masks of a plain forward depend on the tokens' places, which must fall into chunks as positions do.
        chunk = math.lcm(*(chunks or ()))
        if chunks and first // chunk != (first + _HIGH - 1) // chunk:
            first -= first % chunk
        self.high_positions = torch.arange(first, first + _HIGH)[None]
        self.positions = torch.cat([torch.arange(_LOW).repeat(_LOWS), self.high_positions[0]])
        self._tokens = torch.cat([self.low.flatten(), self.high[0]])
        self.logit_rows = torch.tensor([7, 12, 16])
        self.steps = self._make_steps()
        self.source = torch.cat([step.source for step in self.steps])
        self.places = [place for step in self.steps for place in step.places]
        self.rows = self._in_logits(self.source).nonzero()[:, 0].tolist()
        compared = self.source[self.rows]
        self.logit_index = compared // _LOW, torch.searchsorted(self.logit_rows, self.positions[compared])

    @staticmethod
    def fits(max_positions: int | None) -> bool:
        return max_positions is None or max_positions >= _LOW

    def _make_steps(self) -> list[CheckStep]:
        tree = KVTree(NUM_PAGES, PAGE_SIZE)
        first, high = tree.create(), tree.create()
        text = {first: 0, high: _LOWS}
        # 16, 9 and 3 tokens: below 16 rows, a product's cost grows with every three rows begun.
        steps = [self._step("prefill", tree, text, {first: 12, high: 4})]
        (second,) = tree.fork(first, 1, at=_FORKS[1])
        (third,) = tree.fork(first, 1, at=_FORKS[2])
        text |= {second: 1, third: 2}
        steps.append(self._step("fork", tree, text, {first: 4, second: 3, third: 1, high: 1}))
        tree.truncate(second, _TRUNCATED)
        text[second] = 0
        everyone = dict.fromkeys((first, second, third), 1)
        steps.append(self._step("decode, after a truncation of the second branch", tree, text, everyone))
        return steps

    def _step(self, name: str, tree: KVTree, text: Mapping[int, int], counts: Mapping[int, int]) -> CheckStep:
        """Appends `counts[branch]` tokens of its own text to each branch."""
        ids = list(counts)
        lengths = tree.block_tables(ids)[1].tolist()
        sources = [
            torch.arange(text[branch] * _LOW + length, text[branch] * _LOW + length + counts[branch])
            for branch, length in zip(ids, lengths, strict=True)
        ]
        appended = tree.append(ids, [self._tokens[source].tolist() for source in sources])
        tables, after = tree.block_tables(ids)
        source = torch.cat(sources)
        inputs = StepInputs(
            tokens=self._tokens[source].tolist(),
            positions=self.positions[source].tolist(),
            rows=self._in_logits(source).nonzero()[:, 0].tolist(),
            slots=appended.slots,
            copies=appended.copies,
            tables=tables,
            lengths=after,
            counts=np.array(list(counts.values()), dtype=np.int32),
        )
        return CheckStep(inputs, source, [(name, position) for position in inputs.positions])

    def _in_logits(self, source: Tensor) -> Tensor:
        """Whether logits of tokens are compared."""
        return (source < _LOWS * _LOW) & torch.isin(self.positions[source], self.logit_rows)


def special_tokens(config: Any) -> set[int]:
    """Returns ids that a config names: of padding, of ends, of places for images."""
    found = set()
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_index")):
            found |= {token for token in (value if isinstance(value, list) else [value]) if token is not None}
    return found
