"""Search strategies: coroutines over branches, one file each, to be read beside their papers.

The families, in the order in which commands list them: `sampling`, `steps`, `trees`, `particles`, `budget`,
`refinement`, `graphs`, `asynchronous`.
"""

# isort: off
from tts_decode.search.sampling import (
    adaptive_consistency,
    b4,
    best_of_n,
    first_finish,
    knockout,
    model_switch,
    multi_verifier,
    no_thinking,
    rpc,
    sample_scrutinize,
    self_calibration,
    self_consistency,
    st_bon,
)
from tts_decode.search.steps import (
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
from tts_decode.search.trees import (
    ab_mcts,
    forest_of_thought,
    mcts,
    mcts_judge,
    r2_retrieval,
    reward_guided_tree_search,
)
from tts_decode.search.particles import particle_filter, particle_gibbs, qalign
from tts_decode.search.budget import (
    budget_forcing,
    entropy_forking,
    hint_infer,
    iterative_deepening,
    rollout_share,
    shifted_window,
)
from tts_decode.search.refinement import (
    feedback_edit,
    heart,
    iterative_agent_decoding,
    magicore,
    multi_round,
    revise,
    sets,
    t1_verify,
    three_d,
    tpo,
)
from tts_decode.search.graphs import adaptive_graph, archon, aries, atom_of_thoughts
from tts_decode.search.asynchronous import atts

# isort: on
from tts_decode.search.files import read_json, write_json, write_parquet
from tts_decode.search.journal import Journal
from tts_decode.search.result import Candidate, KVSample, SearchResult, SearchStats, Selection
from tts_decode.search.run import SearchRun, at_least
from tts_decode.search.strategy import STRATEGIES, Strategy, get_strategy, strategy
from tts_decode.search.tree import Node, render_tree

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
    "revise",
    "reward_guided_tree_search",
    "rollout_share",
    "rpc",
    "sample_scrutinize",
    "self_calibration",
    "self_consistency",
    "sentence_embedder",
    "sets",
    "shifted_window",
    "st_bon",
    "strategy",
    "swift",
    "t1_verify",
    "three_d",
    "tpo",
    "write_json",
    "write_parquet",
]
