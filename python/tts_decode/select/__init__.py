"""Selection rules of search algorithms: pure functions over numbers, without branches or models.

Scores are floats; larger is better. Every rule is deterministic (ties go to the lower index) or draws from
the generator it is given.
"""

from .allocation import ALLOCATIONS, allocate, rebase_weights, walk_ceilings
from .answers import extract_answer, last_boxed, last_value, plain_number, stated_answer, unit_behind
from .attention_gradient import attended_tokens, attention_gradient
from .b4 import b4_scores
from .bandit import EXPLORATION_RULES, ExplorationRule, better_half, halving_rounds, next_question
from .bayes_risk import expected_gains, rouge_1
from .centrality import chain_of_embedding, most_central, ngram_distances, squared_differences
from .choices import last_choice
from .clusters import cluster
from .compression import kept_tokens
from .confidence import MEASURES, group_confidences, top_percent_bar, trace_confidence
from .conformal import conformal_p_value, percentile_rank, rejects
from .consistency import agreement, borda_weights, consistency_weight, majority_probability
from .cost_model import ets_objective, ets_select, retained_nodes
from .coverage import coverage_curve, coverage_fit, pass_at_k
from .dag import ancestors, earlier_needs, longest_path
from .difficulty import difficulty_bin, difficulty_edges
from .entropy import fork_points
from .eviction import evicted_columns
from .generators import stacked_choice, thompson_generator, ucb_generator
from .merging import hyper_nodes
from .metropolis import acceptance
from .mixed_model import MixedModel, mixed_choice, mixed_generator, mixed_stack, settled
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
    bootstrap_mean,
    geometric_mean_ratio,
    paired_difference,
    paired_proportion_difference,
    wilson_interval,
)
from .subsets import AtK, majority_at_k, naive_at_k, weighted_at_k
from .thompson import Beta, Gaussian, generate_or_continue, thompson
from .tournament import bracket, match_winner, wins_of, within
from .uct import puct, self_refine_uct, uct
from .units import unit_named
from .verifiers import choose_verifiers
from .vote_confidence import vote_confidence
from .votes import elect, vote, vote_weights

__all__ = [
    "AGG_STRATEGIES",
    "ALLOCATIONS",
    "EXPLORATION_RULES",
    "MEASURES",
    "AtK",
    "Beta",
    "ExplorationRule",
    "Gaussian",
    "Interval",
    "MixedModel",
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
    "better_half",
    "bootstrap_mean",
    "borda_weights",
    "bracket",
    "chain_of_embedding",
    "choose_verifiers",
    "cluster",
    "conformal_p_value",
    "consistency_weight",
    "coverage_curve",
    "coverage_fit",
    "difficulty_bin",
    "difficulty_edges",
    "earlier_needs",
    "effective_sample_size",
    "elect",
    "ets_objective",
    "ets_select",
    "evicted_columns",
    "expected_gains",
    "extract_answer",
    "fork_points",
    "generate_or_continue",
    "geometric_mean_ratio",
    "group_confidences",
    "halving_rounds",
    "hyper_nodes",
    "kept_tokens",
    "last_boxed",
    "last_choice",
    "last_value",
    "lexical_similarity",
    "logit",
    "longest_path",
    "majority_at_k",
    "majority_probability",
    "match_winner",
    "mixed_choice",
    "mixed_generator",
    "mixed_stack",
    "most_central",
    "most_similar",
    "multinomial",
    "naive_at_k",
    "next_question",
    "ngram_distances",
    "paired_difference",
    "paired_proportion_difference",
    "particle_weights",
    "pass_at_k",
    "percentile_rank",
    "plain_number",
    "probable_paths",
    "puct",
    "rating",
    "rebase_weights",
    "rejects",
    "retained_nodes",
    "rouge_1",
    "sample_top_k",
    "selective_utility",
    "self_refine_uct",
    "settled",
    "squared_differences",
    "stacked_choice",
    "stated_answer",
    "systematic",
    "thompson",
    "thompson_generator",
    "top_k",
    "top_percent_bar",
    "trace_confidence",
    "ucb_generator",
    "uct",
    "unit_behind",
    "unit_named",
    "vote",
    "vote_confidence",
    "vote_weights",
    "walk_ceilings",
    "weighted_at_k",
    "wilson_interval",
    "wins_of",
    "within",
]
