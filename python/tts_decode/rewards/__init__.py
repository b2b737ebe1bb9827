"""Scorers: what a search is guided by. Each maps branches to one finite float a branch, larger is better.

`load_reward_model` is imported when it is first used: it needs transformers, which no other scorer does.
"""

from typing import TYPE_CHECKING, Any

from tts_decode.extras import explained
from tts_decode.rewards.mean_logprob import mean_logprob
from tts_decode.rewards.mean_probability import mean_probability
from tts_decode.rewards.readers import READERS, Reader
from tts_decode.rewards.readouts import ClassHead, TokenSoftmax, ValueHead, VocabularyMean
from tts_decode.rewards.reward_model import RewardModel
from tts_decode.rewards.scorer import Scorer, score_branches
from tts_decode.rewards.self_evaluation import self_evaluation
from tts_decode.rewards.templates import (
    ChatTagTemplate,
    OutcomeTemplate,
    PieceTemplate,
    Reading,
    TagTemplate,
    TurnTemplate,
)
from tts_decode.rewards.verifier import verifier

if TYPE_CHECKING:
    from tts_decode.rewards.loading import load_reward_model

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
    "load_reward_model",
    "mean_logprob",
    "mean_probability",
    "score_branches",
    "self_evaluation",
    "verifier",
]


def __getattr__(name: str) -> Any:
    if name != "load_reward_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from tts_decode.rewards.loading import load_reward_model
    except ModuleNotFoundError as missing:
        raise explained(missing) from missing
    return load_reward_model
