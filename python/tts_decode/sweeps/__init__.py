"""Statistics of a sweep's searches: accuracy at k samples, intervals, budgets. See docs/sweeps.md."""

from .budgets import UNITS, Budget, budgets_at
from .estimates import Estimate, estimates
from .intervals import mean_interval
from .searches import Sample, Search
from .tables import read_sweep, write_tables

__all__ = [
    "UNITS",
    "Budget",
    "Estimate",
    "Sample",
    "Search",
    "budgets_at",
    "estimates",
    "mean_interval",
    "read_sweep",
    "write_tables",
]
