"""Decoding API over search trees: branches, strategies, scorers.

Names are imported when they are first used. Importing torch and transformers takes seconds, and
`OpenAICompletions` needs no transformers.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .extras import installed, unavailable
from .version import package_version

if TYPE_CHECKING:
    __version__: str

    from .completions.branch import TextBranch
    from .completions.completion import Completion, CompletionRequest
    from .completions.decoder import TextDecoder
    from .completions.openai import OpenAICompletions
    from .core.budget import Budget
    from .core.constraints.grammars import Choice, Grammar, JSONSchema, Regex
    from .core.constraints.protocol import Constraint, ConstraintState
    from .core.interfaces import Branch, Decoder
    from .core.params import SamplingParams
    from .core.running import gather
    from .core.state import BranchState
    from .core.stats import DecoderStats
    from .core.step import Step, StepPiece
    from .core.stop_when import closed_boxed, closed_json
    from .decoding.branch import TreeBranch
    from .decoding.compression_rule import Compression
    from .decoding.decoder import TreeDecoder
    from .decoding.kv_budget import KVBudget, Pin
    from .decoding.offload import KVOffload
    from .errors import (
        BranchReleasedError,
        ConstraintError,
        EngineError,
        JournalError,
        KVFileError,
        MissingExtraError,
        ModelLoadError,
        OutOfPagesError,
        PromptTooLongError,
        ResultFileError,
        ScorerError,
        StaleKVError,
        TTSError,
        UnsupportedByEngineError,
        UnsupportedModelError,
    )
    from .model.sparse import SparseConfig
    from .search.ask_tell import AskTell, LogprobRequest, RequestWithdrawnError, ScoreRequest

__all__ = [
    "AskTell",
    "Branch",
    "BranchReleasedError",
    "BranchState",
    "Budget",
    "Choice",
    "Completion",
    "CompletionRequest",
    "Compression",
    "Constraint",
    "ConstraintError",
    "ConstraintState",
    "Decoder",
    "DecoderStats",
    "EngineError",
    "Grammar",
    "JSONSchema",
    "JournalError",
    "KVBudget",
    "KVFileError",
    "KVOffload",
    "LogprobRequest",
    "MissingExtraError",
    "ModelLoadError",
    "OpenAICompletions",
    "OutOfPagesError",
    "Pin",
    "PromptTooLongError",
    "Regex",
    "RequestWithdrawnError",
    "ResultFileError",
    "SamplingParams",
    "ScoreRequest",
    "ScorerError",
    "SparseConfig",
    "StaleKVError",
    "Step",
    "StepPiece",
    "TTSError",
    "TextBranch",
    "TextDecoder",
    "TreeBranch",
    "TreeDecoder",
    "UnsupportedByEngineError",
    "UnsupportedModelError",
    "__version__",
    "closed_boxed",
    "closed_json",
    "gather",
]

if not installed("transformers"):  # import * and help() then do without what needs it
    __all__[:] = [name for name in __all__ if name not in ("TreeBranch", "TreeDecoder")]

_MODULES = {
    "search.ask_tell": ("AskTell", "LogprobRequest", "RequestWithdrawnError", "ScoreRequest"),
    "completions.branch": ("TextBranch",),
    "decoding.branch": ("TreeBranch",),
    "core.budget": ("Budget",),
    "core.constraints.grammars": ("Choice", "Grammar", "JSONSchema", "Regex"),
    "core.constraints.protocol": ("Constraint", "ConstraintState"),
    "decoding.compression_rule": ("Compression",),
    "decoding.decoder": ("TreeDecoder",),
    "completions.completion": ("Completion", "CompletionRequest"),
    "completions.openai": ("OpenAICompletions",),
    "completions.decoder": ("TextDecoder",),
    "errors": (
        "BranchReleasedError",
        "ConstraintError",
        "EngineError",
        "JournalError",
        "KVFileError",
        "MissingExtraError",
        "ModelLoadError",
        "OutOfPagesError",
        "PromptTooLongError",
        "ResultFileError",
        "ScorerError",
        "StaleKVError",
        "TTSError",
        "UnsupportedByEngineError",
        "UnsupportedModelError",
    ),
    "decoding.kv_budget": ("KVBudget", "Pin"),
    "decoding.offload": ("KVOffload",),
    "core.running": ("gather",),
    "core.interfaces": ("Branch", "Decoder"),
    "core.params": ("SamplingParams",),
    "model.sparse": ("SparseConfig",),
    "core.state": ("BranchState",),
    "core.stats": ("DecoderStats",),
    "core.step": ("Step", "StepPiece"),
    "core.stop_when": ("closed_boxed", "closed_json"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the application listens


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return package_version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as missing:
        raise unavailable(__name__, name, missing) from missing
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
