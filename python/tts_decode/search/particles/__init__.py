"""Sampling from a posterior: particles and Markov chains."""

from .particle_filter import particle_filter
from .particle_gibbs import particle_gibbs
from .qalign import qalign

__all__ = ["particle_filter", "particle_gibbs", "qalign"]
