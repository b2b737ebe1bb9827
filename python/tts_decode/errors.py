"""Errors of the decoding API. `TTSError`, their base, and `OutOfPagesError` come from the kernel package."""

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
    """A branch was used after `release()`; its KV pages may belong to another branch by now."""


class ConstraintError(TTSError, ValueError):
    """A constraint is malformed, or tokens violate it; the message says where."""


class UnsupportedModelError(TTSError, ValueError):
    """The model has a feature that the tree attention path does not support; the message names it."""


class PromptTooLongError(TTSError, ValueError):
    """A prompt or forced text exceeds the model's positions or the KV pool; the message gives the numbers."""


class ReturnedError(TTSError, TypeError):
    """A caller's function, such as a scorer or tool, returned an unusable value; the message names it."""


class StrategyError(TTSError, TypeError):
    """A strategy rejects its arguments, or returned no result; the message names it."""


class StaleKVError(TTSError, RuntimeError):
    """The model's weights changed after the branch was computed; `Branch.recompute` computes it again."""


class ModelLoadError(TTSError, RuntimeError):
    """A model could not be loaded; the message names what was asked for and what to do."""


class MissingExtraError(TTSError, ImportError):
    """A feature needs a package that is not installed; the message holds the command that installs it."""


class VersionError(MissingExtraError):
    """A package is installed in a version that was not tested; the message names the tested ones."""


class ScorerError(TTSError, RuntimeError):
    """A scorer raised; the message names the scorer and the error."""


class JournalError(TTSError, ValueError):
    """A search cannot be resumed from a journal; the message names the file and the reason."""


class UnsupportedByEngineError(TTSError, RuntimeError):
    """A strategy asked a text engine for more than a completion call can give; the message names it."""


class KVFileError(TTSError, ValueError):
    """A KV file cannot be written or used; the message names the file and the reason."""


class ResultFileError(TTSError, ValueError):
    """The file of a search's result cannot be read; the message names the file and the reason."""


class EngineError(TTSError, RuntimeError):
    """An engine outside this process failed, or its answer cannot be right; the message says how."""


class SandboxError(TTSError, RuntimeError):
    """A program cannot be isolated from the rest of the system; the message says what is missing."""


class ClusterError(TTSError, RuntimeError):
    """A cluster cannot be reached, or an actor of it failed; the message names the address or the node."""


class MeshError(TTSError, RuntimeError):
    """The ranks that hold one model differ or lost each other; the message names the rank and the reason."""
