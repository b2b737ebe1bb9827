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
    "mcts": {"n": 4, "width": 3},
    "ab_mcts": {"n": 6, "batch_size": 3},
    "mcts_judge": {"n": 3, "rollouts": 2, "max_depth": 2, "num_tests": 2},
    "forest_of_thought": {"n": 2, "max_iter": 1, "extract": length_mod_3},
    "reward_guided_tree_search": {"n": 6, "width": 2, "pre_expansion": 4, "extract": length_mod_3},
    "r2_retrieval": {"n": 3, "width": 3},
    # particles
    # budget
    # refinement
    # graphs
    # asynchronous
    "atts": {"n": 4, "extract": length_mod_3},
}


def small_options(name: str) -> dict[str, Any]:
    scorer = {"scorer": verifier(vowels)} if get_strategy(name).needs_scorer else {}
    return scorer | SMALL[name]
