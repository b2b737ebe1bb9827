"""Shared-prefix KV storage and attention over search trees."""

from tts_kernels._core import Append, KVTree, OutOfPages, TreeStats
from tts_kernels.plan import TreePlan, plan

__all__ = ["Append", "KVTree", "OutOfPages", "TreePlan", "TreeStats", "plan"]
