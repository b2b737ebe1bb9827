"""Search strategies: coroutines over branches, one file each, to be read beside their papers.

The families, in the order in which commands list them: `sampling`, `steps`, `trees`, `particles`, `budget`,
`refinement`, `graphs`, `asynchronous`.
"""

# isort: off
from tts_decode.search.sampling import best_of_n, self_consistency
from tts_decode.search.steps import beam_search, ets, lm_beam_search, rebase, sentence_embedder
from tts_decode.search.budget import (
    budget_forcing,
    entropy_forking,
    hint_infer,
    iterative_deepening,
    rollout_share,
    shifted_window,
)
from tts_decode.search.graphs import adaptive_graph, archon, aries, atom_of_thoughts

# isort: on
from tts_decode.search.files import read_json, write_json, write_parquet
from tts_decode.search.journal import Journal
from tts_decode.search.result import Candidate, KVSample, SearchResult, SearchStats, Selection
from tts_decode.search.run import SearchRun
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
    "adaptive_graph",
    "archon",
    "aries",
    "atom_of_thoughts",
    "beam_search",
    "best_of_n",
    "budget_forcing",
    "entropy_forking",
    "ets",
    "get_strategy",
    "hint_infer",
    "iterative_deepening",
    "lm_beam_search",
    "read_json",
    "rebase",
    "render_tree",
    "rollout_share",
    "self_consistency",
    "sentence_embedder",
    "shifted_window",
    "strategy",
    "write_json",
    "write_parquet",
]
