"""Options that make a small search of each strategy, for the tests of what is true of all of them."""

from __future__ import annotations

from typing import Any

from tts_decode.rewards import verifier
from tts_decode.search import get_strategy


def vowels(text: str) -> float:
    """A verifier with a wide range of values in [0, 1], so that selections differ."""
    return sum(ord(char) % 7 for char in text) / (1 + 6 * len(text))


def length_mod_3(text: str) -> str:
    """An answer of any text, one of three."""
    return str(len(text) % 3)


SMALL: dict[str, dict[str, Any]] = {
    # sampling
    "best_of_n": {"n": 6},
    "self_consistency": {"n": 6, "extract": length_mod_3},
    # steps
    "beam_search": {"n": 8, "beam_width": 4},
    "lm_beam_search": {"n": 3},
    "rebase": {"n": 8},
    "ets": {"n": 8, "lambda_b": 1.0, "lambda_d": 0.5},
    "compute_optimal": {"n": 8, "probes": 2},
    "dvts": {"n": 8, "beam_width": 4},
    "fetch": {"n": 8, "beam_width": 4},
    "lookahead": {"n": 8, "beam_width": 4},
    "swift": {"n": 8, "beam_width": 4, "softmax_temperature": 0.1},
    # trees
    # particles
    "particle_filter": {"n": 6},
    "particle_gibbs": {"n": 4},
    "qalign": {"n": 8, "chains": 2, "burn_in": 1, "extract": length_mod_3},
    # budget
    # refinement
    # graphs
    # asynchronous
}


def small_options(name: str) -> dict[str, Any]:
    scorer = {"scorer": verifier(vowels)} if get_strategy(name).needs_scorer else {}
    return scorer | SMALL[name]
