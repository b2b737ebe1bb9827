"""Search step by step, the live branches side by side."""

from tts_decode.search.steps.beam_search import beam_search
from tts_decode.search.steps.compute_optimal import compute_optimal
from tts_decode.search.steps.dvts import dvts
from tts_decode.search.steps.ets import ets, sentence_embedder
from tts_decode.search.steps.fetch import fetch
from tts_decode.search.steps.lm_beam_search import lm_beam_search
from tts_decode.search.steps.lookahead import lookahead
from tts_decode.search.steps.rebase import rebase
from tts_decode.search.steps.swift import swift

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
