"""Step-by-step search over concurrent live branches."""

from .beam_search import beam_search
from .compute_optimal import compute_optimal
from .dvts import dvts
from .ets import ets, sentence_embedder
from .fetch import fetch
from .lm_beam_search import lm_beam_search
from .lookahead import lookahead
from .rebase import rebase
from .swift import swift

__all__ = [
    "beam_search",
    "compute_optimal",
    "dvts",
    "ets",
    "fetch",
    "lm_beam_search",
    "lookahead",
    "rebase",
    "sentence_embedder",
    "swift",
]
