"""Answers that are judged, criticised and written again."""

from tts_decode.search.refinement.multi_round import multi_round
from tts_decode.search.refinement.revise import revise
from tts_decode.search.refinement.sets import sets

__all__ = [
    "multi_round",
    "revise",
    "sets",
]
