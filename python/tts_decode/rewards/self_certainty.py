"""The model's own confidence: the distance of its distributions from the uniform one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.interfaces import Branch
    from ..core.step import Step
    from .scorer import Scorer


def self_certainty() -> Scorer:
    """Scorer: mean of `Step.self_certainties` over the tokens that a branch sampled, nats, at least 0.

    It is 0 before the first token. Kang et al., "Scalable Best-of-N Selection for Large Language Models via
    Self-Certainty", arXiv 2502.18581. It needs no forward pass, but steps must be sampled with
    `SamplingParams(self_certainty=True)`; otherwise it raises ValueError.
    """

    async def self_certainty(branches: Sequence[Branch]) -> list[float]:
        return [mean_certainty(branch.steps) for branch in branches]

    return self_certainty


def mean_certainty(steps: Sequence[Step]) -> float:
    """Returns the mean self-certainty of the steps' tokens, nats; 0 without tokens.

    Raises ValueError if a step does not have it.
    """
    values: list[float] = []
    for step in steps:
        if len(step.self_certainties) != len(step.tokens):
            raise ValueError(
                f"self_certainties: got {len(step.self_certainties)} for the {len(step.tokens)} tokens of a "
                "step, expected one each; sample with SamplingParams(self_certainty=True)"
            )
        values += step.self_certainties
    return math.fsum(values) / max(len(values), 1)
