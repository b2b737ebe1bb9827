"""Selection rules of search algorithms: pure functions over numbers, with no branch and no model in sight.

Scores are floats where larger is better. Every rule is deterministic (ties go to the lower index) or
draws from the generator that it is given.
"""

from tts_decode.select.allocation import allocate, rebase_weights
from tts_decode.select.answers import extract_answer
from tts_decode.select.clusters import cluster
from tts_decode.select.cost_model import ets_objective, ets_select, retained_nodes
from tts_decode.select.difficulty import difficulty_bin, difficulty_edges
from tts_decode.select.eviction import evicted_columns
from tts_decode.select.merging import hyper_nodes
from tts_decode.select.metropolis import acceptance
from tts_decode.select.ratings import rating
from tts_decode.select.resampling import (
    annealed_temperature,
    effective_sample_size,
    logit,
    multinomial,
    particle_weights,
    sample_top_k,
    systematic,
)
from tts_decode.select.scores import AGG_STRATEGIES, aggregate, top_k
from tts_decode.select.votes import vote

__all__ = [
    "AGG_STRATEGIES",
    "acceptance",
    "aggregate",
    "allocate",
    "annealed_temperature",
    "cluster",
    "difficulty_bin",
    "difficulty_edges",
    "effective_sample_size",
    "ets_objective",
    "ets_select",
    "evicted_columns",
    "extract_answer",
    "hyper_nodes",
    "logit",
    "multinomial",
    "particle_weights",
    "rating",
    "rebase_weights",
    "retained_nodes",
    "sample_top_k",
    "systematic",
    "top_k",
    "vote",
]
