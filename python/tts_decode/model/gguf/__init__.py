"""GGUF files: the meaning of their keys, and loading them as transformers models."""
