"""Trees of whole or partial answers, grown where statistics of earlier visits point."""

from tts_decode.search.trees.mcts import mcts

__all__ = ["mcts"]
