"""Search strategies: coroutines over branches, one file each, to be read beside their papers.

The families, in the order in which commands list them: `sampling`, `steps`, `trees`, `particles`, `budget`,
`refinement`, `graphs`, `asynchronous`.
"""

# isort: off
from tts_decode.search.sampling import best_of_n, self_consistency
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
from tts_decode.search.particles import particle_filter, particle_gibbs, qalign

# isort: on
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
    "beam_search",
    "best_of_n",
    "compute_optimal",
    "dvts",
    "ets",
    "fetch",
    "get_strategy",
    "lm_beam_search",
    "lookahead",
    "particle_filter",
    "particle_gibbs",
    "qalign",
    "rebase",
    "render_tree",
    "self_consistency",
    "sentence_embedder",
    "strategy",
    "swift",
]
