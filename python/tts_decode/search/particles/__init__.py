"""Sampling from a posterior: particles and Markov chains."""

from tts_decode.search.particles.particle_filter import particle_filter
from tts_decode.search.particles.particle_gibbs import particle_gibbs
from tts_decode.search.particles.qalign import qalign

__all__ = ["particle_filter", "particle_gibbs", "qalign"]
