"""Errors of the decoding API; `OutOfPages` is the kernel package's own."""

from tts_kernels import OutOfPages

__all__ = [
    "BranchReleased",
    "EngineError",
    "JournalError",
    "ModelLoadError",
    "OutOfPages",
    "PromptTooLong",
    "ResultFileError",
    "ScorerError",
    "StaleKV",
    "UnsupportedByEngine",
    "UnsupportedModel",
]


class BranchReleased(RuntimeError):  # noqa: N818
    """A branch was used after `release()`; its KV pages may belong to somebody else by now."""


class UnsupportedModel(ValueError):  # noqa: N818
    """The model has a feature that the tree attention path does not serve; the message names it."""


class PromptTooLong(ValueError):  # noqa: N818
    """A prompt or forced text exceeds the model's positions or the KV pool; the message gives the numbers."""


class StaleKV(RuntimeError):  # noqa: N818
    """The model's weights changed after the branch was computed: `Branch.recompute` computes it again."""


class ModelLoadError(RuntimeError):
    """A model could not be loaded; the message names what was asked for and what to do."""


class ScorerError(RuntimeError):
    """A scorer raised; the message names it and what it raised."""


class JournalError(ValueError):
    """A search cannot be resumed from a journal; the message names the file and why."""


class UnsupportedByEngine(RuntimeError):  # noqa: N818
    """A strategy asked a text engine for what a completion call cannot give; the message names it."""


class ResultFileError(ValueError):
    """A file of a search's result cannot be read; the message names it and why."""


class EngineError(RuntimeError):
    """An engine outside this process failed, or its answer cannot be right; the message says how."""
