"""Spending more, or less, on one line of thought."""

from tts_decode.search.budget.budget_forcing import budget_forcing
from tts_decode.search.budget.entropy_forking import entropy_forking, rollout_share
from tts_decode.search.budget.hint_infer import hint_infer
from tts_decode.search.budget.iterative_deepening import iterative_deepening
from tts_decode.search.budget.shifted_window import shifted_window

__all__ = [
    "budget_forcing",
    "entropy_forking",
    "hint_infer",
    "iterative_deepening",
    "rollout_share",
    "shifted_window",
]
