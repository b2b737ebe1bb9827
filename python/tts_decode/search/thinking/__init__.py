"""Spends more, or less, on one line of thought."""

from .atlas import atlas, attention_trigger
from .budget_forcing import budget_forcing
from .entropy_forking import entropy_forking, rollout_share
from .hint_infer import hint_infer
from .iterative_deepening import iterative_deepening
from .selective_answer import selective_answer
from .shifted_window import shifted_window
from .sleep_time import sleep_time, think_ahead

__all__ = [
    "atlas",
    "attention_trigger",
    "budget_forcing",
    "entropy_forking",
    "hint_infer",
    "iterative_deepening",
    "rollout_share",
    "selective_answer",
    "shifted_window",
    "sleep_time",
    "think_ahead",
]
