"""The acceptance rule of a Markov chain over texts."""

from __future__ import annotations

import math

from tts_kernels.checks import number


def acceptance(
    reward: float, proposed_reward: float, length: int, proposed_length: int, beta: float
) -> float:
    """Returns the probability of moving to a proposed text, which shares a prefix and was sampled from there.

    Metropolis-Hastings for the distribution p(text) exp(reward / beta): with the cut uniform over a text's
    `length` tokens and the rest drawn from p, all of p cancels, which leaves min(1, exp((proposed_reward -
    reward) / beta) length / proposed_length).
    """
    number("beta", beta, above=0)
    log_ratio = (proposed_reward - reward) / beta + math.log(length / proposed_length)
    return math.exp(min(log_ratio, 0.0))
