"""Names of strategy options: the table of docs/own-strategy.md, and names that only one strategy has."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs/own-strategy.md"
_ROW = re.compile(r"^\| `([a-z_*]+)` \| `([^`]+)` \| (.+) \|$", re.MULTILINE)


class Word(NamedTuple):
    """A row. name: of an option, or a pattern with a star. kind: the annotation, without None."""

    name: str
    kind: str
    meaning: str


def read_vocabulary() -> list[Word]:
    section = PAGE.read_text(encoding="utf-8").partition("## Names of options")[2]
    return [Word(*row) for row in _ROW.findall(section)]


VOCABULARY = read_vocabulary()


def word_for(option: str) -> Word | None:
    """The row of an option: the one of its name before a pattern, None if it has none."""
    rows = [word for word in VOCABULARY if fnmatchcase(option, word.name)]
    return min(rows, key=lambda word: "*" in word.name, default=None)


SIZES = ("n", "max_samples", "num_simulations", "max_trees", "num_votes", "max_parts")
"""What the first option may be called: how much is searched."""

OWN: dict[str, set[str]] = {
    "adaptive_consistency": {"criterion"},
    "b4": {"run_tests", "beta_0", "alpha_xy"},
    "deepconf": {"num_warmup", "eta", "window", "measure", "signal", "num_likeliest", "num_between"},
    "model_switch": {"priors"},
    "multi_verifier": {"chosen", "verdict"},
    "no_thinking": {"power", "thinking"},
    "rpc": {"prune"},
    "sample_scrutinize": {"num_verifications", "margin"},
    "st_bon": {"tau_coeff", "consistency"},
    "compute_optimal": {"policy", "num_probes"},
    "revisions": {"num_sequential", "max_attempts"},
    "ets": {"lambda_b", "lambda_d", "node_cost"},
    "lm_beam_search": {"length_penalty", "early_stopping"},
    "lookahead": {"k"},
    "ab_mcts": {"posterior", "feedback", "generator"},
    "forest_of_thought": {"examples", "max_active"},
    "mcts": {"selection", "simulate", "pb_c_base", "pb_c_init"},
    "mcts_judge": {"self_assessment"},
    "r2_retrieval": {"library", "num_unaided"},
    "r_mcts": {"memory"},
    "reward_guided_tree_search": {"pre_expansion", "consistency_weight"},
    "particle_filter": {"early_phase"},
    "qalign": {"beta", "burn_in"},
    "budget_forcing": {"num_ignore"},
    "entropy_forking": {"num_branches"},
    "hint_infer": {"num_hints", "hints", "conjunctions"},
    "iterative_deepening": {"gamma"},
    "selective_answer": {"abstention"},
    "s_star": {"public_tests"},
    "sleep_time": {"context", "notes"},
    "atlas": {"max_retrievals", "trigger"},
    "feedback_edit": {"num_feedbacks", "num_edits"},
    "heart": {"negative", "positive"},
    "magicore": {"outcome_scorer"},
    "revise": {"accept", "refine"},
    "adaptive_graph": {"max_layers"},
    "archon": {"layers"},
    "aries": {"max_actions"},
    "atts": {"alpha", "rule", "calibration", "num_calibration", "keep_rejected", "early_stop"},
}
"""By strategy, the options that no other one has: symbols of its paper and what is special to it."""


def place(option: str, size: str) -> int:
    """Where an option stands in a signature: numbers never fall from left to right."""
    if option == size:
        return 0
    for number, pattern in ((1, "*scorer"), (2, "*decoder"), (2, "*decoders"), (4, "*_prompt")):
        if fnmatchcase(option, pattern):
            return number
    return {"decide_by": 5, "agg_strategy": 6, "extract": 7}.get(option, 3)
