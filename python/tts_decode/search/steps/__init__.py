"""Search step by step, the live branches side by side."""

from tts_decode.search.steps.beam_search import beam_search
from tts_decode.search.steps.ets import ets, sentence_embedder
from tts_decode.search.steps.lm_beam_search import lm_beam_search
from tts_decode.search.steps.rebase import rebase

__all__ = ["beam_search", "ets", "lm_beam_search", "rebase", "sentence_embedder"]
