"""Decoding API over search trees: branches, strategies, scorers."""

from tts_decode.branch import Branch, Step
from tts_decode.budget import Budget
from tts_decode.decoder import DecoderStats, TreeDecoder, gather
from tts_decode.errors import BranchReleased, OutOfPages, UnsupportedModel
from tts_decode.sampling import SamplingParams

__all__ = [
    "Branch",
    "BranchReleased",
    "Budget",
    "DecoderStats",
    "OutOfPages",
    "SamplingParams",
    "Step",
    "TreeDecoder",
    "UnsupportedModel",
    "gather",
]
