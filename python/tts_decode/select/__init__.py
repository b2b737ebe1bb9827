"""Selection rules of search algorithms: pure functions over numbers, with no branch and no model in sight.

Scores are floats where larger is better. Every rule is deterministic (ties go to the lower index) or
draws from the generator that it is given.
"""

from .allocation import allocate, rebase_weights
from .answers import extract_answer
from .attention_gradient import attended_tokens, attention_gradient
from .b4 import b4_scores
from .centrality import hidden_distances, most_central, ngram_distances
from .choices import last_choice
from .clusters import cluster
from .confidence import MEASURES, group_confidences, top_percent_bar, trace_confidence
from .conformal import conformal_p_value, rejects
from .consistency import agreement, borda_weights, consistency_weight, majority_probability
from .cost_model import ets_objective, ets_select, retained_nodes
from .coverage import coverage_curve, coverage_fit, pass_at_k
from .dag import ancestors, earlier_needs, longest_path
from .difficulty import difficulty_bin, difficulty_edges
from .entropy import fork_points
from .eviction import evicted_columns
from .merging import hyper_nodes
from .metropolis import acceptance
from .probable_paths import probable_paths
from .ratings import rating
from .resampling import (
    annealed_temperature,
    effective_sample_size,
    logit,
    multinomial,
    particle_weights,
    sample_top_k,
    systematic,
)
from .scores import AGG_STRATEGIES, aggregate, aggregation, top_k
from .selective import Selective, selective_utility
from .similarity import lexical_similarity, most_similar
from .statistics import (
    Interval,
    geometric_mean_ratio,
    paired_difference,
    paired_proportion_difference,
    wilson_interval,
)
from .thompson import Beta, Gaussian, generate_or_continue, thompson
from .tournament import bracket, match_winner, wins_of, within
from .uct import puct, self_refine_uct, uct
from .vote_confidence import vote_confidence
from .votes import vote

__all__ = [
    "AGG_STRATEGIES",
    "MEASURES",
    "Beta",
    "Gaussian",
    "Interval",
    "Selective",
    "acceptance",
    "aggregate",
    "aggregation",
    "agreement",
    "allocate",
    "ancestors",
    "annealed_temperature",
    "attended_tokens",
    "attention_gradient",
    "b4_scores",
    "borda_weights",
    "bracket",
    "cluster",
    "conformal_p_value",
    "consistency_weight",
    "coverage_curve",
    "coverage_fit",
    "difficulty_bin",
    "difficulty_edges",
    "earlier_needs",
    "effective_sample_size",
    "ets_objective",
    "ets_select",
    "evicted_columns",
    "extract_answer",
    "fork_points",
    "generate_or_continue",
    "geometric_mean_ratio",
    "group_confidences",
    "hidden_distances",
    "hyper_nodes",
    "last_choice",
    "lexical_similarity",
    "logit",
    "longest_path",
    "majority_probability",
    "match_winner",
    "most_central",
    "most_similar",
    "multinomial",
    "ngram_distances",
    "paired_difference",
    "paired_proportion_difference",
    "particle_weights",
    "pass_at_k",
    "probable_paths",
    "puct",
    "rating",
    "rebase_weights",
    "rejects",
    "retained_nodes",
    "sample_top_k",
    "selective_utility",
    "self_refine_uct",
    "systematic",
    "thompson",
    "top_k",
    "top_percent_bar",
    "trace_confidence",
    "uct",
    "vote",
    "vote_confidence",
    "wilson_interval",
    "wins_of",
    "within",
]
