"""Adapters for libraries that search over a language model of theirs: over a decoder of this process."""
