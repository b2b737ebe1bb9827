"""Options that make a small search of each strategy, for the tests of what is true of all of them."""

from __future__ import annotations

from typing import Any

from tts_decode.rewards import self_evaluation, verifier
from tts_decode.search import get_strategy


def vowels(text: str) -> float:
    """A verifier with a wide range of values in [0, 1], so that selections differ."""
    return sum(ord(char) % 7 for char in text) / (1 + 6 * len(text))


def length_mod_3(text: str) -> str:
    """An answer of any text, one of three."""
    return str(len(text) % 3)


SMALL: dict[str, dict[str, Any]] = {
    # sampling
    "adaptive_consistency": {"n": 9, "wave": 3, "extract": length_mod_3},
    "b4": {
        "n": 6,
        "num_tests": 2,
        "write_prompt": "{question} ask",
        "check_prompt": "{question}{answer}{check}",
    },
    "best_of_n": {"n": 6},
    "first_finish": {"n": 8},
    "knockout": {"n": 5, "comparisons": 3, "compare_prompt": "{question}A {first}B {second}"},
    "model_switch": {"n": 6, "extract": length_mod_3},
    "multi_verifier": {"n": 6, "aspects": ["a", "b"], "verify_prompt": "{question}{answer}{aspect}"},
    "no_thinking": {"n": 6, "thinking": "<t></t>", "extract": length_mod_3},
    "rpc": {"n": 6, "extract": length_mod_3},
    "sample_scrutinize": {
        "n": 4,
        "verifications": 2,
        "comparisons": 2,
        "margin": 1.0,
        "verify_prompt": "{answer}",
    }
    | {"compare_prompt": "{question}A {first}B {second}"},
    "self_calibration": {"n": 6, "wave": 3, "scorer": self_evaluation(yes=("y",), no=("n",))},
    "self_consistency": {"n": 6, "extract": length_mod_3},
    "st_bon": {"n": 8, "tau_coeff": 4.0},
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
    "mcts": {"n": 4, "width": 3},
    "ab_mcts": {"n": 6, "batch_size": 3},
    "mcts_judge": {"n": 3, "rollouts": 2, "num_tests": 1, "perspectives": ("Is it right?", "Is it whole?")},
    "forest_of_thought": {
        "n": 2,
        "scorer": verifier(vowels),
        "correct_threshold": -99.0,
        "extract": length_mod_3,
    },
    "reward_guided_tree_search": {"n": 6, "width": 2, "pre_expansion": 4, "extract": length_mod_3},
    "r2_retrieval": {"n": 3, "width": 3},
    # particles
    "particle_filter": {"n": 6},
    "particle_gibbs": {"n": 4},
    "qalign": {"n": 8, "chains": 2, "burn_in": 1, "extract": length_mod_3},
    # budget
    "budget_forcing": {"n": 3, "max_tokens_thinking": 12, "extract": length_mod_3},
    "shifted_window": {"n": 3, "max_tokens_thinking": 12, "extract": length_mod_3},
    "iterative_deepening": {"n": 3, "first_budget": 6, "trigger": "Wait", "extract": length_mod_3},
    "hint_infer": {"n": 3, "num_forks": 1, "conjunctions": ("e", "a"), "extract": length_mod_3},
    "entropy_forking": {"n": 2, "extract": length_mod_3},
    # refinement
    "feedback_edit": {"n": 3, "feedbacks": 2, "edits": 2}
    | {"feedback_prompt": "{question}{answer}say", "edit_prompt": "{question}{answer}{feedback}edit"},
    "heart": {"n": 3, "rounds": 2, "again_prompt": "{question}{answer}{cue}", "negative": ["no"]}
    | {"positive": ["yes"], "synthesis_prompt": "{question}{answers}", "extract": length_mod_3},
    "iterative_agent_decoding": {"n": 3, "rounds": 2, "refine_prompt": "{question}{best}{worst}"},
    "magicore": {"n": 3, "rounds": 2, "min_reward": 2.0, "min_confidence": 2.0}
    | {"review_prompt": "{question}{solution}", "refine_prompt": "{question}{solution}{review}"}
    | {"extract": length_mod_3},
    "multi_round": {"n": 3, "rounds": 2, "again_prompt": "{question}{answer}again", "extract": length_mod_3},
    "revise": {"n": 4, "verify": "ok? ", "accept": "y", "refine": "n", "rethink": "hm"}
    | {"extract": length_mod_3},
    "sets": {"n": 3, "rounds": 2, "extract": length_mod_3}
    | {"verify_prompt": "{history}check", "correct_prompt": "{history}again"},
    "t1_verify": {"n": 4, "tool": lambda code: str(len(code) % 2 == 0)}
    | {"code_prompt": "{question}{answer}code", "verify_prompt": "{question}{answer}ok?"},
    "three_d": {"n": 3, "turns": 2, "max_tokens_thinking": 12, "refine_prompt": "{question}{answer}again"}
    | {"extract": length_mod_3},
    "tpo": {"n": 3, "depth": 2, "loss_prompt": "{question}{chosen}{rejected}"}
    | {"gradient_prompt": "{question}{chosen}{rejected}{loss}"}
    | {"update_prompt": "{question}{chosen}{rejected}{loss}{gradient}"},
    # graphs
    "atom_of_thoughts": {"n": 3, "extract": length_mod_3},
    "adaptive_graph": {"n": 3},
    "aries": {"n": 3, "max_steps": 3, "max_tokens_policy": 6},
    "archon": {"n": 3, "layers": "generate rank:2 critique verify test fuse"},
    # asynchronous
    "atts": {"n": 4, "extract": length_mod_3},
}


def small_options(name: str) -> dict[str, Any]:
    scorer = {"scorer": verifier(vowels)} if get_strategy(name).needs_scorer else {}
    return scorer | SMALL[name]
