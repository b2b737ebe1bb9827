"""Answers that are judged, criticised and written again."""

from .feedback_edit import feedback_edit
from .heart import heart
from .iterative_agent_decoding import iterative_agent_decoding
from .magicore import magicore
from .multi_round import multi_round
from .revise import revise
from .revisions import revisions
from .s_star import s_star
from .sets import sets
from .t1_verify import t1_verify
from .three_d import three_d
from .tpo import tpo

__all__ = [
    "feedback_edit",
    "heart",
    "iterative_agent_decoding",
    "magicore",
    "multi_round",
    "revise",
    "revisions",
    "s_star",
    "sets",
    "t1_verify",
    "three_d",
    "tpo",
]
