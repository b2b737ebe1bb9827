"""The settings besides its defaults that each strategy needs to run as in its paper: data, read by `kit`.

Sizes let one core fill a table in half an hour. If a paper's own option would never act on answers of 64
tokens, such as a window of 2,048, it is shortened in proportion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal


class Part(Enum):
    """What a setup names and `kit` makes. The value is what the table calls it, "" where that goes without
    saying."""

    FIRST = ""  # the decoder of the default model
    SECOND = "Gemma 3 270M"  # the decoder of the second model
    TOOL = "Python in the sandbox"
    RETRIEVER = "retriever"  # over the corpus of `kit`
    TRIGGER = "attention's trigger"  # the paper's, on a copy of the model
    LIBRARY = "solved problems with templates"
    EXAMPLES = "solved problems"
    PUBLIC_TESTS = "public tests"  # of the task
    FEEDBACK = "what public tests say"  # of the task
    WRITTEN_TESTS = "tests that the model wrote before, not counted"  # for the task
    VERIFIER = "trained verifier"


@dataclass(frozen=True)
class Setup:
    """problems: which ones. scorer: what scores; None: nothing, unless the strategy cannot do without.
    options: those that differ from the defaults, parts among them; the strategy's first one, unless it is
    there, is the table's size. sampling: fields of `SamplingParams` that differ from the table's.
    """

    problems: Literal["default", "programs", "stories"] = "default"
    scorer: Literal["trained verifier", "mean_probability", "public tests", "own check"] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)


_VERIFIED = Setup(scorer="trained verifier")

SETUPS: dict[str, Setup] = {
    # sampling
    "b4": Setup("programs", options={"run_tests": Part.WRITTEN_TESTS}),
    "best_of_n": _VERIFIED,
    "deepconf": Setup(options={"num_warmup": 4, "parallel": 4, "window": 16, "num_between": 8}),
    "model_switch": Setup(options={"decoders": (Part.SECOND,)}),
    "multi_verifier": Setup(options={"n": 4, "verifier_decoders": (Part.FIRST, Part.SECOND)}),
    "repeated_sampling": Setup("programs", "own check", {"parallel": 4}),
    "self_calibration": _VERIFIED,
    # steps
    "beam_search": _VERIFIED,
    "compute_optimal": Setup(scorer="mean_probability"),  # for which the default policy was measured
    "dvts": _VERIFIED,
    "ets": _VERIFIED,
    "fetch": _VERIFIED,
    "lookahead": _VERIFIED,
    "rebase": _VERIFIED,
    # trees
    "ab_mcts": Setup("programs", "public tests", {"decoders": (Part.SECOND,), "feedback": Part.FEEDBACK}),
    "forest_of_thought": Setup(options={"examples": Part.EXAMPLES}),
    "mcts": _VERIFIED,
    "mcts_judge": Setup("programs", options={"num_simulations": 4}),
    "r2_retrieval": Setup(scorer="trained verifier", options={"library": Part.LIBRARY}),
    "reward_guided_tree_search": _VERIFIED,
    # particles
    "particle_filter": _VERIFIED,
    "particle_gibbs": _VERIFIED,
    "qalign": _VERIFIED,
    # thinking
    "atlas": Setup(options={"retrieve": Part.RETRIEVER, "trigger": Part.TRIGGER}),
    "hint_infer": Setup(options={"tool": Part.TOOL}, sampling={"max_tokens": 160}),  # hints and code included
    "iterative_deepening": Setup(options={"max_tokens_first": 16}),
    "selective_answer": Setup(options={"max_tokens_thinking": 48}),
    "shifted_window": Setup(options={"max_tokens_thinking": 32}),
    "sleep_time": Setup("stories", options={"max_rounds": 3, "max_tokens_notes": 64}),
    # refinement
    "iterative_agent_decoding": Setup("programs", "public tests"),
    "magicore": Setup(scorer="trained verifier", options={"outcome_scorer": Part.VERIFIER}),
    "multi_round": Setup(options={"max_rounds": 3}),
    "revisions": _VERIFIED,
    "s_star": Setup("programs", options={"tool": Part.TOOL, "public_tests": Part.PUBLIC_TESTS}),
    "t1_verify": Setup(scorer="trained verifier", options={"tool": Part.TOOL}),
    "three_d": Setup(options={"max_tokens_thinking": 32}),
    "tpo": _VERIFIED,
    # graphs and asynchronous
    "archon": Setup(options={"decoders": (Part.SECOND,)}),
    "atts": Setup(options={"target_decoder": Part.SECOND}),
}
"""By strategy; one that is not here is run with its defaults."""

NOT_RUN: dict[str, str] = {
    "feedback_edit": "needs the feedback and edit models that its paper trains",
    "r_mcts": "needs an agent's environment, and models that debate its states",
    "revise": "needs a model trained to refine or to end",
    "swift": "needs a world model of video",
}
"""Strategies that cannot be run as their papers do with what can be had here, and why."""


def described(setup: Setup) -> dict[str, Any]:
    """JSON-ready: parts by their names."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return value.name if isinstance(value, Part) else value

    options = {name: plain(value) for name, value in setup.options.items()}
    sampling = dict(setup.sampling)
    return {"problems": setup.problems, "scorer": setup.scorer, "options": options, "sampling": sampling}
