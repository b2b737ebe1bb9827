"""Searches on the actors of a Ray cluster. Ray is imported on first use."""

from .identity import Identity
from .pool import SearchPool
from .totals import PoolStats
from .work import Ended, Host, PooledSearch, Work

__all__ = ["Ended", "Host", "Identity", "PoolStats", "PooledSearch", "SearchPool", "Work"]
