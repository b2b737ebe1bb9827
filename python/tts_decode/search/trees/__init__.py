"""Trees of whole or partial answers, grown by the statistics of earlier visits."""

from .ab_mcts import ab_mcts
from .forest_of_thought import forest_of_thought
from .mcts import mcts
from .mcts_judge import mcts_judge
from .r2_retrieval import r2_retrieval
from .r_mcts import Reflection, ReflectionMemory, r_mcts
from .reference_library import ReferenceLibrary, SolvedProblem, with_templates
from .reward_guided_tree_search import reward_guided_tree_search

__all__ = [
    "ReferenceLibrary",
    "Reflection",
    "ReflectionMemory",
    "SolvedProblem",
    "ab_mcts",
    "forest_of_thought",
    "mcts",
    "mcts_judge",
    "r2_retrieval",
    "r_mcts",
    "reward_guided_tree_search",
    "with_templates",
]
