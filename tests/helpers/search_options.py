"""Options for a small search of each strategy, for the tests of properties that all of them share."""

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


# What waits for these goes on in the same tick in each run; what threads return comes when they like.


async def first_letters(query: str) -> str:
    """A retriever."""
    return query[:3]


async def length_mod_3_of(code: str) -> str:
    """A tool."""
    return length_mod_3(code)


async def has_even_length(code: str) -> str:
    """A tool."""
    return str(len(code) % 2 == 0)


SMALL: dict[str, dict[str, Any]] = {
    # sampling
    "adaptive_consistency": {"max_samples": 9, "parallel": 3, "extract": length_mod_3},
    "b4": {
        "n": 6,
        "num_tests": 2,
        "write_prompt": "{question} ask",
        "check_prompt": "{question}{answer}{check}",
    },
    "best_of_n": {"n": 6},
    "deepconf": {
        "max_samples": 9,
        "num_warmup": 4,
        "parallel": 3,
        "eta": 50.0,
        "window": 4,
        "num_between": 2,
        "extract": length_mod_3,
    },
    "first_finish": {"n": 8},
    "knockout": {"n": 5, "num_comparisons": 3, "compare_prompt": "{question}A {first}B {second}"},
    "model_switch": {"n": 6, "extract": length_mod_3},
    "multi_verifier": {"n": 6, "aspects": ["a", "b"], "verify_prompt": "{question}{answer}{aspect}"}
    | {"clarify_prompt": "{aspect}?"},
    "no_thinking": {"n": 6, "thinking": "<t></t>", "extract": length_mod_3},
    "repeated_sampling": {"max_samples": 6, "parallel": 3, "extract": length_mod_3},
    "rpc": {"n": 6, "extract": length_mod_3},
    "sample_scrutinize": {
        "n": 4,
        "num_verifications": 2,
        "num_comparisons": 2,
        "margin": 1.0,
        "verify_prompt": "{answer}",
    }
    | {"compare_prompt": "{question}A {first}B {second}"},
    "self_calibration": {"max_samples": 6, "parallel": 3, "scorer": self_evaluation(yes=("y",), no=("n",))},
    "self_consistency": {"n": 6, "extract": length_mod_3},
    "st_bon": {"n": 8, "tau_coeff": 4.0},
    # steps
    "beam_search": {"n": 8, "beam_width": 4},
    "lm_beam_search": {"n": 3},
    "rebase": {"n": 8},
    "ets": {"n": 8, "lambda_b": 1.0, "lambda_d": 0.5},
    "compute_optimal": {"n": 8, "num_probes": 2},
    "dvts": {"n": 8, "beam_width": 4},
    "fetch": {"n": 8, "beam_width": 4},
    "lookahead": {"n": 8, "beam_width": 4},
    "swift": {"n": 8, "beam_width": 4, "softmax_temperature": 0.1},
    # trees
    "mcts": {"num_simulations": 4, "num_children": 3},
    "ab_mcts": {"max_samples": 6, "parallel": 3},
    "mcts_judge": {"n": 3, "num_simulations": 2, "num_tests": 1, "aspects": ("Is it right?", "Is it whole?")},
    "forest_of_thought": {
        "max_trees": 2,
        "scorer": verifier(vowels),
        "correct_threshold": -99.0,
        "extract": length_mod_3,
    },
    "reward_guided_tree_search": {
        "max_samples": 6,
        "num_children": 2,
        "pre_expansion": 4,
        "extract": length_mod_3,
    },
    "r_mcts": {
        "num_simulations": 3,
        "num_children": 3,
        "threshold": 0.0,
        "expect_prompt": "{question}{state}{step}",
        "reflect_prompt": "{question}{expected}{actual}",
        "remind_prompt": "{question}{reflections}",
    },
    "r2_retrieval": {"num_simulations": 3, "num_children": 3},
    # particles
    "particle_filter": {"n": 6},
    "particle_gibbs": {"n": 4},
    "qalign": {"max_samples": 8, "parallel": 2, "burn_in": 1, "extract": length_mod_3},
    # budget
    "budget_forcing": {"n": 3, "max_tokens_thinking": 12, "extract": length_mod_3},
    "shifted_window": {"n": 3, "max_tokens_thinking": 12, "extract": length_mod_3},
    "iterative_deepening": {"n": 3, "max_tokens_first": 6, "rethink": "Wait", "extract": length_mod_3},
    "selective_answer": {"n": 3, "max_tokens_thinking": 12, "threshold": 0.0, "extract": length_mod_3},
    "sleep_time": {
        "n": 3,
        "max_rounds": 2,
        "max_tokens_notes": 8,
        "notes_prompt": "{context}{notes}",
        "answer_prompt": "{context}{notes}{question}",
        "extract": length_mod_3,
    },
    "atlas": {
        "n": 3,
        "retrieve": first_letters,
        "threshold": 0.9,
        "retrieved_prompt": "{retrieved}{question}",
        "extract": length_mod_3,
    },
    "hint_infer": {"n": 3, "num_forks": 1, "conjunctions": ("e", "a"), "extract": length_mod_3},
    "entropy_forking": {"n": 2, "extract": length_mod_3},
    # refinement
    "feedback_edit": {"n": 3, "num_feedbacks": 2, "num_edits": 2}
    | {"feedback_prompt": "{question}{answer}say", "edit_prompt": "{question}{answer}{feedback}edit"},
    "heart": {"n": 3, "max_rounds": 2, "refine_prompt": "{question}{answer}{cue}", "negative": ["no"]}
    | {"positive": ["yes"], "synthesis_prompt": "{question}{answers}", "extract": length_mod_3},
    "iterative_agent_decoding": {"n": 3, "max_rounds": 1, "refine_prompt": "{question}{best}{worst}"},
    "magicore": {"n": 3, "max_rounds": 2, "reward_threshold": 2.0, "confidence_threshold": 2.0}
    | {"review_prompt": "{question}{solution}", "refine_prompt": "{question}{solution}{review}"}
    | {"extract": length_mod_3},
    "multi_round": {
        "n": 3,
        "max_rounds": 1,
        "refine_prompt": "{question}{answer}again",
        "extract": length_mod_3,
    },
    "revise": {"n": 4, "verify_prompt": "ok? ", "accept": "y", "refine": "n", "rethink": "hm"}
    | {"extract": length_mod_3},
    "revisions": {
        "n": 4,
        "num_sequential": 2,
        "refine_prompt": "{question}{attempts}",
        "extract": length_mod_3,
    },
    "s_star": {
        "n": 3,
        "max_rounds": 1,
        "num_tests": 2,
        "tool": length_mod_3_of,
        "public_tests": [("1", "1")],
        "debug_prompt": "{question}{answer}{feedback}",
        "inputs_prompt": "{question}{count}",
        "distinguish_prompt": "{question}{first}{second}{count}",
        "judge_prompt": "{question}{first}{second}{outputs}",
    },
    "sets": {"n": 3, "max_rounds": 2, "extract": length_mod_3}
    | {"verify_prompt": "{history}check", "refine_prompt": "{history}again"},
    "t1_verify": {"n": 4, "tool": has_even_length}
    | {"code_prompt": "{question}{answer}code", "verify_prompt": "{question}{answer}ok?"},
    "three_d": {
        "n": 3,
        "max_rounds": 1,
        "max_tokens_thinking": 12,
        "refine_prompt": "{question}{answer}again",
    }
    | {"extract": length_mod_3},
    "tpo": {"n": 3, "max_rounds": 2, "loss_prompt": "{question}{chosen}{rejected}"}
    | {"gradient_prompt": "{question}{chosen}{rejected}{loss}"}
    | {"update_prompt": "{question}{chosen}{rejected}{loss}{gradient}"},
    # graphs
    "atom_of_thoughts": {"n": 3, "extract": length_mod_3},
    "adaptive_graph": {"max_parts": 3},
    "aries": {"num_votes": 3, "max_actions": 3, "max_tokens_policy": 6},
    "archon": {"n": 3, "layers": "generate rank:2 critique verify test fuse"},
    # asynchronous
    "atts": {"n": 4, "num_calibration": 3, "extract": length_mod_3},
}


def small_options(name: str) -> dict[str, Any]:
    scorer = {"scorer": verifier(vowels)} if get_strategy(name).needs_scorer else {}
    return scorer | SMALL[name]
