"""Whole answers, sampled independently."""

from .adaptive_consistency import adaptive_consistency
from .b4 import b4
from .best_of_n import best_of_n
from .deepconf import deepconf
from .first_finish import first_finish
from .knockout import knockout
from .model_switch import model_switch
from .multi_verifier import multi_verifier
from .no_thinking import no_thinking
from .repeated_sampling import repeated_sampling
from .rpc import rpc
from .sample_scrutinize import sample_scrutinize
from .self_calibration import self_calibration
from .self_consistency import self_consistency
from .st_bon import st_bon

__all__ = [
    "adaptive_consistency",
    "b4",
    "best_of_n",
    "deepconf",
    "first_finish",
    "knockout",
    "model_switch",
    "multi_verifier",
    "no_thinking",
    "repeated_sampling",
    "rpc",
    "sample_scrutinize",
    "self_calibration",
    "self_consistency",
    "st_bon",
]
