"""Trees of whole or partial answers, grown where statistics of earlier visits point."""

from tts_decode.search.trees.ab_mcts import ab_mcts
from tts_decode.search.trees.forest_of_thought import forest_of_thought
from tts_decode.search.trees.mcts import mcts
from tts_decode.search.trees.mcts_judge import mcts_judge
from tts_decode.search.trees.r2_retrieval import r2_retrieval
from tts_decode.search.trees.reward_guided_tree_search import reward_guided_tree_search

__all__ = [
    "ab_mcts",
    "forest_of_thought",
    "mcts",
    "mcts_judge",
    "r2_retrieval",
    "reward_guided_tree_search",
]
