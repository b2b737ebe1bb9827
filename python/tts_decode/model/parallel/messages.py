"""Messages of the leader to the others: integers only, never objects."""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..host_steps import StepInputs

HEADER = 12  # int64


class Kind(IntEnum):
    """The kind of a message: nothing to do yet, a step, or the end."""

    STILL_HERE = 0
    STEP = 1
    END = 2


class Message(NamedTuple):
    """A message to the ranks.

    header: int64 [HEADER]. numbers: int32, all numbers of a step, concatenated. embeds: as in `StepInputs`,
    float32 [S, hidden].
    """

    header: Tensor
    numbers: Tensor
    embeds: Tensor


def of_kind(kind: Kind) -> Tensor:
    """Returns a header without a body."""
    return torch.tensor([kind] + [0] * (HEADER - 1), dtype=torch.int64)


def of_step(step: StepInputs, number: int, *, hidden: bool) -> Message:
    """Makes a step's message. number: of the step. hidden: whether last hidden states are requested."""
    numbers = np.concatenate(
        [np.asarray(values, np.int32).reshape(-1) for values in (step.tokens, step.positions, step.rows)]
        + [values.reshape(-1) for values in (step.slots, step.copies, step.tables, step.lengths, step.counts)]
    )
    embeds = torch.empty(0, 0) if step.embeds is None else step.embeds.float().cpu().contiguous()
    sizes = len(step.tokens), len(step.rows), len(step.copies), *step.tables.shape, *embeds.shape
    crc = zlib.crc32(numbers.tobytes())
    header = torch.tensor([Kind.STEP, number, *sizes, hidden, len(numbers), crc], dtype=torch.int64)
    return Message(header, torch.from_numpy(numbers), embeds)


def rooms_for(header: Tensor) -> tuple[Tensor, Tensor]:
    """Allocates the numbers and the embeds that follow a step's header."""
    fields = header.tolist()
    return torch.empty(fields[10], dtype=torch.int32), torch.empty(fields[7], fields[8])


def step_of(message: Message) -> tuple[StepInputs, bool]:
    """Returns the step, and whether last hidden states are requested.

    Raises ValueError if the numbers are not those that were sent.
    """
    tokens, rows, copies, branches, pages, embeds, _, hidden, count, crc = message.header.tolist()[2:]
    numbers = message.numbers.numpy()
    if zlib.crc32(numbers.tobytes()) != crc or len(numbers) != count:
        raise ValueError("the numbers of a step arrived damaged")
    sizes = tokens, tokens, rows, tokens, 2 * copies, branches * pages, branches, branches
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    step = StepInputs(
        parts[0].tolist(),
        parts[1].tolist(),
        parts[2].tolist(),
        parts[3],
        parts[4].reshape(copies, 2),
        parts[5].reshape(branches, pages),
        parts[6],
        parts[7],
        None,
        message.embeds if embeds else None,
    )
    return step, bool(hidden)
