"""Figures of saved runs: accuracy against cost, and KV over a search's duration. See docs/plots.md."""

from .captions import Caption, caption
from .drawing import draw_accuracy, draw_memory
from .lines import Line, Place, Point, all_failed, lines_of, places_of
from .measures import MEASURES, Measure
from .memory import Held, kv_over_time
from .rules import EqualCost, at_equal_cost, pareto_front
from .runs import Ended, SavedRun

__all__ = [
    "MEASURES",
    "Caption",
    "Ended",
    "EqualCost",
    "Held",
    "Line",
    "Measure",
    "Place",
    "Point",
    "SavedRun",
    "all_failed",
    "at_equal_cost",
    "caption",
    "draw_accuracy",
    "draw_memory",
    "kv_over_time",
    "lines_of",
    "pareto_front",
    "places_of",
]
