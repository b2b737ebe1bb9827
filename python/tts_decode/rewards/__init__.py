"""Scorers: what a search is guided by. Each maps branches to one finite float a branch, larger is better."""

from tts_decode.rewards.mean_logprob import mean_logprob
from tts_decode.rewards.scorer import Scorer, score_branches
from tts_decode.rewards.self_evaluation import self_evaluation
from tts_decode.rewards.verifier import verifier

__all__ = ["Scorer", "mean_logprob", "score_branches", "self_evaluation", "verifier"]
