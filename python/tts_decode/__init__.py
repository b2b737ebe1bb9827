"""Decoding API over search trees: branches, strategies, scorers."""

from .branch import Branch, Step
from .budget import Budget
from .decoder import DecoderStats, TreeDecoder, gather
from .errors import BranchReleased, OutOfPages, UnsupportedModel
from .sampling import SamplingParams

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
