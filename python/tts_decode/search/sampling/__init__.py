"""Whole answers, sampled independently."""

from tts_decode.search.sampling.best_of_n import best_of_n
from tts_decode.search.sampling.self_consistency import self_consistency

__all__ = ["best_of_n", "self_consistency"]
