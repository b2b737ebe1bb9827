"""Scorers: what a search is guided by. Each maps branches to one finite float a branch, larger is better."""

from .loading import load_reward_model
from .mean_logprob import mean_logprob
from .mean_probability import mean_probability
from .readers import READERS, Reader
from .readouts import ClassHead, TokenSoftmax, ValueHead, VocabularyMean
from .reward_model import RewardModel
from .scorer import Scorer, score_branches
from .self_evaluation import self_evaluation
from .templates import ChatTagTemplate, OutcomeTemplate, PieceTemplate, Reading, TagTemplate, TurnTemplate
from .verifier import verifier

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
