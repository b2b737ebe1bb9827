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
    # trees
    # particles
    # budget
    "budget_forcing": {"n": 3, "max_tokens_thinking": 12, "extract": length_mod_3},
    "shifted_window": {"n": 3, "max_tokens_thinking": 12, "extract": length_mod_3},
    "iterative_deepening": {"n": 3, "first_budget": 6, "trigger": "Wait", "extract": length_mod_3},
    "hint_infer": {"n": 3, "num_forks": 1, "conjunctions": ("e", "a"), "extract": length_mod_3},
    "entropy_forking": {"n": 2, "extract": length_mod_3},
    # refinement
    # graphs
    "atom_of_thoughts": {"n": 3, "extract": length_mod_3},
    "adaptive_graph": {"n": 3},
    "aries": {"n": 3, "max_steps": 3, "max_tokens_policy": 6},
    "archon": {"n": 3, "layers": "generate rank:2 critique verify test fuse"},
    # asynchronous
}


def small_options(name: str) -> dict[str, Any]:
    scorer = {"scorer": verifier(vowels)} if get_strategy(name).needs_scorer else {}
    return scorer | SMALL[name]
