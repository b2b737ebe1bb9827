"""Sampling from a posterior: particles and Markov chains."""
