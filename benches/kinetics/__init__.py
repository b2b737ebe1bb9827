"""Kinetics (Sadhukhan et al. 2025, arXiv 2506.05333) measured: accuracy against eFLOPs, dense and sparse."""
