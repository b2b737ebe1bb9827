"""Search strategies: coroutines over branches, one file each, to be read beside their papers."""

from tts_decode.search.beam_search import beam_search
from tts_decode.search.best_of_n import best_of_n
from tts_decode.search.ets import ets, sentence_embedder
from tts_decode.search.lm_beam_search import lm_beam_search
from tts_decode.search.rebase import rebase
from tts_decode.search.registry import STRATEGIES, Strategy, get_strategy
from tts_decode.search.result import Candidate, SearchResult, SearchStats, Selection
from tts_decode.search.run import SearchRun
from tts_decode.search.self_consistency import self_consistency
from tts_decode.search.tree import Node, render_tree

__all__ = [
    "STRATEGIES",
    "Candidate",
    "Node",
    "SearchResult",
    "SearchRun",
    "SearchStats",
    "Selection",
    "Strategy",
    "beam_search",
    "best_of_n",
    "ets",
    "get_strategy",
    "lm_beam_search",
    "rebase",
    "render_tree",
    "self_consistency",
    "sentence_embedder",
]
