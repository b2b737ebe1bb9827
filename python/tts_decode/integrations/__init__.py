"""Adapters for libraries that search over their own language model: they run on a decoder of this process."""
