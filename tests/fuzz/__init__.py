"""Calls of everything public in tts_kernels with arguments that are valid but for a few changes."""
