"""Answers that are judged, criticised and written again."""

from tts_decode.search.refinement.feedback_edit import feedback_edit
from tts_decode.search.refinement.heart import heart
from tts_decode.search.refinement.iterative_agent_decoding import iterative_agent_decoding
from tts_decode.search.refinement.magicore import magicore
from tts_decode.search.refinement.multi_round import multi_round
from tts_decode.search.refinement.revise import revise
from tts_decode.search.refinement.sets import sets
from tts_decode.search.refinement.t1_verify import t1_verify
from tts_decode.search.refinement.three_d import three_d
from tts_decode.search.refinement.tpo import tpo

__all__ = [
    "feedback_edit",
    "heart",
    "iterative_agent_decoding",
    "magicore",
    "multi_round",
    "revise",
    "sets",
    "t1_verify",
    "three_d",
    "tpo",
]
