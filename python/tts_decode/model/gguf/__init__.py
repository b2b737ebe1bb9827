"""GGUF files: what their keys mean, and loading them as transformers models."""
