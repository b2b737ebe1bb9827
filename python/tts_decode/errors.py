"""Errors of the decoding API. `TTSError`, the base of all, and `OutOfPagesError` are the kernel package's."""

from tts_kernels import OutOfPagesError
from tts_kernels.errors import TTSError

__all__ = [
    "BranchReleasedError",
    "ClusterError",
    "ConstraintError",
    "EngineError",
    "JournalError",
    "MeshError",
    "MissingExtraError",
    "ModelLoadError",
    "OutOfPagesError",
    "PromptTooLongError",
    "ResultFileError",
    "ReturnedError",
    "SandboxError",
    "ScorerError",
    "StaleKVError",
    "StrategyError",
    "TTSError",
    "UnsupportedByEngineError",
    "UnsupportedModelError",
    "VersionError",
]


class BranchReleasedError(TTSError, RuntimeError):
    """A branch was used after `release()`; its KV pages may belong to somebody else by now."""


class ConstraintError(TTSError, ValueError):
    """A constraint is malformed, or tokens break it; the message says where."""


class UnsupportedModelError(TTSError, ValueError):
    """The model has a feature that the tree attention path does not serve; the message names it."""


class PromptTooLongError(TTSError, ValueError):
    """A prompt or forced text exceeds the model's positions or the KV pool; the message gives the numbers."""


class ReturnedError(TTSError, TypeError):
    """A function of the caller's, such as a scorer or a tool, returned what cannot be used; the message names
    it."""


class StrategyError(TTSError, TypeError):
    """A strategy does not take what it was given, or returned no result; the message names it."""


class StaleKVError(TTSError, RuntimeError):
    """The model's weights changed after the branch was computed: `Branch.recompute` computes it again."""


class ModelLoadError(TTSError, RuntimeError):
    """A model could not be loaded; the message names what was asked for and what to do."""


class MissingExtraError(TTSError, ImportError):
    """A feature needs a package that is not installed; the message names the command that brings it."""


class VersionError(MissingExtraError):
    """The package is there, in a version that was not tested; the message names those that were."""


class ScorerError(TTSError, RuntimeError):
    """A scorer raised; the message names it and what it raised."""


class JournalError(TTSError, ValueError):
    """A search cannot be resumed from a journal; the message names the file and why."""


class UnsupportedByEngineError(TTSError, RuntimeError):
    """A strategy asked a text engine for what a completion call cannot give; the message names it."""


class KVFileError(TTSError, ValueError):
    """A file of KV cannot be written or used; the message names the file and why."""


class ResultFileError(TTSError, ValueError):
    """A file of a search's result cannot be read; the message names it and why."""


class EngineError(TTSError, RuntimeError):
    """An engine outside this process failed, or its answer cannot be right; the message says how."""


class SandboxError(TTSError, RuntimeError):
    """A program cannot be run apart from the rest of the system; the message says what is missing."""


class ClusterError(TTSError, RuntimeError):
    """A cluster cannot be reached, or an actor of it failed; the message names the address or the node."""


class MeshError(TTSError, RuntimeError):
    """The ranks that hold one model differ, or lost each other; the message names the rank and says how."""
