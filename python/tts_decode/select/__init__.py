"""Selection rules of search algorithms: pure functions over numbers, with no branch and no model in sight.

Scores are floats where larger is better. Every rule is deterministic: ties go to the lower index.
"""

from tts_decode.select.allocation import allocate, rebase_weights
from tts_decode.select.answers import extract_answer
from tts_decode.select.clusters import cluster
from tts_decode.select.cost_model import ets_objective, ets_select, retained_nodes
from tts_decode.select.dag import ancestors, earlier_needs, longest_path
from tts_decode.select.entropy import fork_points
from tts_decode.select.eviction import evicted_columns
from tts_decode.select.ratings import rating
from tts_decode.select.scores import AGG_STRATEGIES, aggregate, aggregation, top_k
from tts_decode.select.votes import vote

__all__ = [
    "AGG_STRATEGIES",
    "aggregate",
    "aggregation",
    "allocate",
    "ancestors",
    "cluster",
    "earlier_needs",
    "ets_objective",
    "ets_select",
    "evicted_columns",
    "extract_answer",
    "fork_points",
    "longest_path",
    "rating",
    "rebase_weights",
    "retained_nodes",
    "top_k",
    "vote",
]
