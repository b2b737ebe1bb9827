"""Search strategies: coroutines over branches, one file each, to be read beside their papers.

The families, in the order in which commands list them: `sampling`, `steps`, `trees`, `particles`, `budget`,
`refinement`, `graphs`, `asynchronous`.
"""

# isort: off
from .sampling import (
    adaptive_consistency,
    b4,
    best_of_n,
    deepconf,
    first_finish,
    knockout,
    model_switch,
    multi_verifier,
    no_thinking,
    repeated_sampling,
    rpc,
    sample_scrutinize,
    self_calibration,
    self_consistency,
    st_bon,
)
from .steps import (
    beam_search,
    compute_optimal,
    dvts,
    ets,
    fetch,
    lm_beam_search,
    lookahead,
    rebase,
    sentence_embedder,
    swift,
)
from .trees import ab_mcts, forest_of_thought, mcts, mcts_judge, r2_retrieval, reward_guided_tree_search
from .particles import particle_filter, particle_gibbs, qalign
from .thinking import (
    budget_forcing,
    entropy_forking,
    hint_infer,
    iterative_deepening,
    rollout_share,
    selective_answer,
    shifted_window,
    sleep_time,
    think_ahead,
)
from .refinement import (
    feedback_edit,
    heart,
    iterative_agent_decoding,
    magicore,
    multi_round,
    revise,
    s_star,
    sets,
    t1_verify,
    three_d,
    tpo,
)
from .graphs import adaptive_graph, archon, aries, atom_of_thoughts
from .asynchronous import atts

# isort: on
from ..core.checks import at_least
from .files import read_json, write_json, write_parquet
from .journal import Journal
from .result import Candidate, KVSample, SearchResult, SearchStats, Selection
from .run import SearchRun
from .strategy import STRATEGIES, Strategy, get_strategy, strategy
from .tree import Node, render_tree

__all__ = [
    "STRATEGIES",
    "Candidate",
    "Journal",
    "KVSample",
    "Node",
    "SearchResult",
    "SearchRun",
    "SearchStats",
    "Selection",
    "Strategy",
    "ab_mcts",
    "adaptive_consistency",
    "adaptive_graph",
    "archon",
    "aries",
    "at_least",
    "atom_of_thoughts",
    "atts",
    "b4",
    "beam_search",
    "best_of_n",
    "budget_forcing",
    "compute_optimal",
    "deepconf",
    "dvts",
    "entropy_forking",
    "ets",
    "feedback_edit",
    "fetch",
    "first_finish",
    "forest_of_thought",
    "get_strategy",
    "heart",
    "hint_infer",
    "iterative_agent_decoding",
    "iterative_deepening",
    "knockout",
    "lm_beam_search",
    "lookahead",
    "magicore",
    "mcts",
    "mcts_judge",
    "model_switch",
    "multi_round",
    "multi_verifier",
    "no_thinking",
    "particle_filter",
    "particle_gibbs",
    "qalign",
    "r2_retrieval",
    "read_json",
    "rebase",
    "render_tree",
    "repeated_sampling",
    "revise",
    "reward_guided_tree_search",
    "rollout_share",
    "rpc",
    "s_star",
    "sample_scrutinize",
    "selective_answer",
    "self_calibration",
    "self_consistency",
    "sentence_embedder",
    "sets",
    "shifted_window",
    "sleep_time",
    "st_bon",
    "strategy",
    "swift",
    "t1_verify",
    "think_ahead",
    "three_d",
    "tpo",
    "write_json",
    "write_parquet",
]
