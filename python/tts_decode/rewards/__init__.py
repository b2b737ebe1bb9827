"""Scorers, which guide a search. Each maps branches to one finite float per branch; larger is better.

`load_reward_model` is imported on first use: it needs transformers, which no other scorer does.
"""

from typing import TYPE_CHECKING, Any

from ..extras import installed, unavailable
from .ensemble import ensemble
from .mean_logprob import mean_logprob
from .mean_probability import mean_probability
from .readers import READERS, Reader
from .readouts import ClassHead, TokenSoftmax, ValueHead, VocabularyMean
from .reward_model import RewardModel
from .scorer import Scorer, score_branches
from .self_certainty import mean_certainty, self_certainty
from .self_evaluation import self_evaluation
from .templates import ChatTagTemplate, OutcomeTemplate, PieceTemplate, Reading, TagTemplate, TurnTemplate
from .verifier import verifier

if TYPE_CHECKING:
    from .loading import load_reward_model

__all__ = [
    "READERS",
    "ChatTagTemplate",
    "ClassHead",
    "OutcomeTemplate",
    "PieceTemplate",
    "Reader",
    "Reading",
    "RewardModel",
    "Scorer",
    "TagTemplate",
    "TokenSoftmax",
    "TurnTemplate",
    "ValueHead",
    "VocabularyMean",
    "ensemble",
    "load_reward_model",
    "mean_certainty",
    "mean_logprob",
    "mean_probability",
    "score_branches",
    "self_certainty",
    "self_evaluation",
    "verifier",
]

if not (installed("transformers") and installed("safetensors")):  # import * and help() then do without it
    __all__[:] = [name for name in __all__ if name != "load_reward_model"]


def __getattr__(name: str) -> Any:
    if name != "load_reward_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .loading import load_reward_model
    except ModuleNotFoundError as missing:
        raise unavailable(__name__, name, missing) from missing
    return load_reward_model
