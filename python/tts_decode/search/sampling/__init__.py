"""Whole answers, sampled independently."""

from tts_decode.search.sampling.adaptive_consistency import adaptive_consistency
from tts_decode.search.sampling.b4 import b4
from tts_decode.search.sampling.best_of_n import best_of_n
from tts_decode.search.sampling.first_finish import first_finish
from tts_decode.search.sampling.knockout import knockout
from tts_decode.search.sampling.model_switch import model_switch
from tts_decode.search.sampling.multi_verifier import multi_verifier
from tts_decode.search.sampling.no_thinking import no_thinking
from tts_decode.search.sampling.rpc import rpc
from tts_decode.search.sampling.sample_scrutinize import sample_scrutinize
from tts_decode.search.sampling.self_calibration import self_calibration
from tts_decode.search.sampling.self_consistency import self_consistency
from tts_decode.search.sampling.st_bon import st_bon

__all__ = [
    "adaptive_consistency",
    "b4",
    "best_of_n",
    "first_finish",
    "knockout",
    "model_switch",
    "multi_verifier",
    "no_thinking",
    "rpc",
    "sample_scrutinize",
    "self_calibration",
    "self_consistency",
    "st_bon",
]
