"""Searches without a barrier between their branches."""
